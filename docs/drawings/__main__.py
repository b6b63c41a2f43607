"""Draw the pictures of the documentation anew, docs/images/*.svg: make drawings, or python docs/drawings [NAME ...]."""

import sys

import torch
from pictures import PICTURES
from style import keep

torch.set_num_threads(1)
for name in sys.argv[1:] or PICTURES:
    print(keep(PICTURES[name](), name))
