"""A saved table in place of torch.nn.Embedding, with safetensors alone."""

import json

import torch
from safetensors import safe_open

BUFFERS = "codes", "values", "right.values", "offset"


class CompressedEmbedding(torch.nn.Module):
    """Table of kind "product", or "factored" of one and a dense basis; its codes stay packed."""

    def __init__(self, path):
        super().__init__()
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["dpq_ref"])
            names = [name for name in file.keys() if not name.startswith(("words.", "checksums"))]
            arrays = {name.removeprefix("left."): file.get_tensor(name) for name in names}
        left = about.get("left", about)
        if about["format"] != 2 or left["kind"] != "product" or set(arrays) - {*BUFFERS}:
            raise ValueError(f"{path} holds {about}; it takes a product table, or one and a basis")
        self.num_embeddings, self.n_groups = left["vocab_size"], left["n_groups"]
        self.additive = left["additive"]
        for name in BUFFERS:
            self.register_buffer(name.replace(".", "_"), arrays.get(name))
        self.codes = torch.nn.functional.pad(self.codes, (0, 2))  # three bytes from any code on
        self.n_bits = (self.values.shape[-2] - 1).bit_length()  # ceil(log2 K), at most 16
        self.embedding_dim = self(torch.zeros(0, dtype=torch.long)).shape[-1]

    def forward(self, ids):
        """Rows of ids, (...,) -> (..., dim)."""
        if ids.numel() and not 0 <= ids.min() <= ids.max() < self.num_embeddings:
            raise IndexError(f"ids must lie in [0, {self.num_embeddings})")
        group = torch.arange(self.n_groups, device=ids.device)
        bit = (ids.long()[..., None] * self.n_groups + group) * self.n_bits  # in the stream
        word = sum(self.codes[bit // 8 + i].long() << (8 * i) for i in range(3))
        codes = (word >> (bit % 8)) & ((1 << self.n_bits) - 1)  # lowest bit first
        if self.values.dim() == 2:  # (K, dim): groups that are not equally wide
            column = torch.arange(self.values.shape[1], device=ids.device)
            widths = [len(part) for part in column.tensor_split(self.n_groups)]
            codes = codes.repeat_interleave(torch.tensor(widths, device=ids.device), -1)
            rows = self.values[codes, column]
        else:  # (D or 1, K, s)
            rows = self.values[group if len(self.values) > 1 else 0, codes]
            rows = sum(rows.unbind(-2)) / self.n_groups if self.additive else rows.flatten(-2)
        if self.right_values is not None:
            rows = rows @ self.right_values
        return rows if self.offset is None else rows + self.offset
