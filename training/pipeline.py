"""Saves the bundled digits as a diffusers pipeline, trained weights and all: python training/pipeline.py FOLDER"""

import sys

from time_tuner.diffusers import digits_pipeline

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python training/pipeline.py FOLDER")
    digits_pipeline().save_pretrained(sys.argv[1])
    print(f"wrote {sys.argv[1]}: ClassConditionalPipeline.from_pretrained({sys.argv[1]!r})")
