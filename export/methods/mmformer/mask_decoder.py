# SPDX-License-Identifier: Apache-2.0
"""The mask decoder: a hundred learned queries, each of which ends as a mask proposal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from export.methods.mmformer.parts import (
    WIDTH,
    CrossAttention,
    FeedForward,
    Resize,
    SelfAttention,
    grid_positions,
)

PROPOSALS = 100
_LAYERS = 9
_HEADS = 8
_HIDDEN = 2048


class _MaskEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        first, second, third = self.layers
        result: Tensor = third(torch.relu(second(torch.relu(first(tokens)))))
        return result


class MaskDecoder(nn.Module):
    """Weights of the mask decoder; `MaskDecoding` runs them at a size."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(_HEADS) for _ in range(_LAYERS)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(_HEADS) for _ in range(_LAYERS)
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(_HIDDEN) for _ in range(_LAYERS))
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.query_feat = nn.Embedding(PROPOSALS, WIDTH)
        self.query_embed = nn.Embedding(PROPOSALS, WIDTH)
        self.level_embed = nn.Embedding(3, WIDTH)
        self.mask_embed = _MaskEmbedding()


class MaskDecoding(nn.Module):
    """From the pixel decoder's tokens and pixel embedding to mask logits."""

    def __init__(
        self, decoder: MaskDecoder, grids: Sequence[tuple[int, int]], finest: tuple[int, int]
    ) -> None:
        """Fixes the grids of the three maps, coarsest first, and of the embedding."""
        super().__init__()
        self.decoder = decoder
        for level, grid in enumerate(grids):
            self.register_buffer(f"positions_{level}", grid_positions(grid))
        self.shrink = nn.ModuleList(Resize(finest, grid, align_corners=False) for grid in grids)

    def forward(self, tokens: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """Proposes.

        Args:
            tokens: Of each map, float32 [batch, h * w, 256].
            embedding: Of every pixel, float32 [batch, 256, H, W].

        Returns:
            Logits of the masks, float32 [batch, 100, H * W].
        """
        *_, states = self.states(tokens, embedding)
        return self.mask_vectors(states) @ embedding.flatten(2)

    def mask_vectors(self, states: Tensor) -> Tensor:
        """What a proposal's logits are products of, float32 [batch, 100, 256]."""
        result: Tensor = self.decoder.mask_embed(self.decoder.decoder_norm(states))
        return result

    def states(self, tokens: Sequence[Tensor], embedding: Tensor) -> Iterator[Tensor]:
        """Yields the proposals' states before the first layer and after each, [batch, 100, 256].

        Those before it are the same for every image, and their batch is one.

        A layer sees the cells that lie in the proposal as it stands. Logits are linear in the
        embedding, so it is the embedding that is resized, once per map instead of once per layer.
        """
        decoder = self.decoder
        small = [shrink(embedding).flatten(2) for shrink in self.shrink]
        memory = [part + decoder.level_embed.weight[level] for level, part in enumerate(tokens)]
        keys = [part + self.get_buffer(f"positions_{level}") for level, part in enumerate(memory)]
        places = decoder.query_embed.weight
        states = decoder.query_feat.weight[None]
        yield states
        layers = zip(
            decoder.transformer_cross_attention_layers,
            decoder.transformer_self_attention_layers,
            decoder.transformer_ffn_layers,
            strict=True,
        )
        for number, (look, exchange, feed_forward) in enumerate(layers):
            level = number % len(small)
            inside = self.mask_vectors(states) @ small[level] >= 0
            # A proposal that lies nowhere sees everything.
            allowed = (inside | ~inside.any(dim=-1, keepdim=True)).unsqueeze(1)
            states = look(states, places, keys[level], memory[level], allowed)
            states = feed_forward(exchange(states, places))
            yield states
