"""What a request may hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep one caller from taking the whole server.

    Attributes:
        message_bytes: Bytes of one message.
        image_pixels: Pixels of one image, read from its header before decoding.
        image_side: Rows, and columns, of one image or mask.
        supports: Supports of one task.
        cross_guided_supports: Supports of one cross-guided task: their pairs are all judged.
        classes: Classes of one task.
        marks: Marks of one annotation.
        vertices: Vertices and points of one annotation.
        mask_pixels: Pixels of all dense masks of one annotation together.
        mask_values: Numbers that the index masks of one annotation name, as classes or void.
        annotation_bytes: Bytes of all annotations of one task together.
        tasks: Tasks of the server.
        in_flight: Requests that run or wait for a slot.
        stream_frames: Frames of one stream that run or wait.
        output_pixels: Pixels of a mask of the caller's own size.
        output_values: Pixels of a mask times classes: all of them are weighed against each other.
    """

    message_bytes: int = 64 * 1024 * 1024
    image_pixels: int = 50_000_000
    image_side: int = 30_000
    supports: int = 5_000
    cross_guided_supports: int = 16
    classes: int = 64
    marks: int = 1_000
    vertices: int = 20_000
    mask_pixels: int = 400_000_000
    mask_values: int = 65_536
    annotation_bytes: int = 64 * 1024 * 1024
    tasks: int = 100_000
    in_flight: int = 64
    stream_frames: int = 8
    output_pixels: int = 50_000_000
    output_values: int = 1_000_000_000
