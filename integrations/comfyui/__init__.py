"""Plans of time_tuner in ComfyUI: copy or link this folder into `custom_nodes/`."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

try:
    from .nodes_v3 import comfy_entrypoint
except ImportError:  # a ComfyUI without the V3 schema takes the mappings
    pass
else:  # and one that has both would take the mappings, too
    del NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    __all__ = ["comfy_entrypoint"]
