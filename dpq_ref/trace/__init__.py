"""One step of DPQ, or of a classical method, array by array, with the formula and a check beside each.

For those who study an algorithm. `sx` and `vq` follow a batch through a layer, forward and backward;
`kmeans`, `opq`, `itq` and `group_reduce` one iteration on a table. Each makes a list of steps, and `text`,
`html` and `npz` show such a list. The command is `dpq-ref trace`.
"""

from dpq_ref.trace.blocks import group_reduce
from dpq_ref.trace.grid import Show
from dpq_ref.trace.lloyd import kmeans
from dpq_ref.trace.nearest import vq
from dpq_ref.trace.render import html, npz, summary, text
from dpq_ref.trace.rotation import itq, opq
from dpq_ref.trace.softmax import sx
from dpq_ref.trace.steps import Claim, Step

__all__ = [
    "Claim",
    "Show",
    "Step",
    "group_reduce",
    "html",
    "itq",
    "kmeans",
    "npz",
    "opq",
    "summary",
    "sx",
    "text",
    "vq",
]
