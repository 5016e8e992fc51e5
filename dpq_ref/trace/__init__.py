"""One step of DPQ, or of a classical method, array by array, with the formula and a check beside each.

For those who study an algorithm. `sx` and `vq` follow a batch through a layer, forward and backward;
`kmeans`, `opq`, `itq` and `group_reduce` one iteration on a table. Each makes a list of steps, and `text`,
`html` and `npz` show such a list. The command is `dpq-ref trace`.
"""

from dpq_ref.trace.dpq import sx, vq
from dpq_ref.trace.render import Show, html, npz, summary, text
from dpq_ref.trace.steps import Claim, Step

__all__ = ["Claim", "Show", "Step", "html", "npz", "summary", "sx", "text", "vq"]
