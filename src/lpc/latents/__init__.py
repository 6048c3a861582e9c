from lpc.latents.base import *

KINDS = {"lpc": LPC, "vector": Vector}
