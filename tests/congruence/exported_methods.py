# SPDX-License-Identifier: Apache-2.0
"""Every method that the exporter knows, with random weights and small inputs: a line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from export.asgnet_family import asgnet_family
from export.canet_family import canet_family
from export.cyctr_family import cyctr_family
from export.family import Family
from export.hsnet_family import hsnet_family
from export.methods.asgnet import AsgnetNetwork
from export.methods.canet import CanetNetwork
from export.methods.cyctr.network import CyctrNetwork
from export.methods.hsnet.graphs import HsnetNetwork
from export.methods.hsnet.trunks import ResNetTaps
from export.methods.mmformer.network import MmformerNetwork, Variant
from export.methods.pfenet import Masking, PfenetNetwork
from export.methods.pmms import PmmsNetwork
from export.methods.repri import RepriNetwork
from export.methods.revolver import GuidedModel, GuidedNetwork
from export.methods.scl_canet import SclCanetNetwork
from export.methods.scl_pfenet import SclPfenetNetwork
from export.methods.sgone import SgOneNetwork
from export.methods.trunks import Backbone
from export.mmformer_family import mmformer_family
from export.pfenet_family import pfenet_family
from export.pmms_family import pmms_family
from export.prototype_family import prototype_family
from export.repri_family import repri_family
from export.revolver_family import revolver_family
from export.scl_canet_family import scl_canet_family
from export.scl_pfenet_family import scl_pfenet_family
from export.sgone_family import sgone_family
from export.sources import panet_seeded

SIZE: Final = (65, 65)
#: Bound of the methods that take images of any size.
MAX_PIXELS: Final = 1 << 16

Common = Mapping[str, Any]

#: Family by method, of what all of them take: alias and provenance.
EXPORTED: Final[Mapping[str, Callable[[Common], Family]]] = {
    "panet": lambda common: prototype_family(
        method="panet", trunk=panet_seeded().trunk, size=SIZE, **common
    ),
    "revolver": lambda common: revolver_family(
        network=_narrow_guided(), max_pixels=MAX_PIXELS, **common
    ),
    "sgone": lambda common: sgone_family(
        network=SgOneNetwork().eval(), max_pixels=MAX_PIXELS, **common
    ),
    "canet": lambda common: canet_family(network=CanetNetwork().eval(), size=SIZE, **common),
    "repri": lambda common: repri_family(
        network=RepriNetwork(Backbone.VGG16, 16).eval(), size=SIZE, **common
    ),
    "hsnet": lambda common: hsnet_family(
        network=HsnetNetwork(ResNetTaps((1, 1, 1, 1))).eval(), size=SIZE, **common
    ),
    "asgnet": lambda common: asgnet_family(
        network=AsgnetNetwork(Backbone.RESNET50).eval(),
        size=SIZE,
        bins=(1.0, 0.5, 0.25, 0.125),
        **common,
    ),
    "pmms": lambda common: pmms_family(
        network=PmmsNetwork(recurrent=True).eval(), size=SIZE, **common
    ),
    "pfenet": lambda common: pfenet_family(
        network=PfenetNetwork(Backbone.VGG16).eval(), size=SIZE, bins=(5, 3, 2, 1), **common
    ),
    "mmformer": lambda common: mmformer_family(
        network=MmformerNetwork(Variant.V1).eval(), size=(64, 64), **common
    ),
    "scl-canet": lambda common: scl_canet_family(
        network=SclCanetNetwork().eval(), max_pixels=MAX_PIXELS, passes=2, **common
    ),
    "scl-pfenet": lambda common: scl_pfenet_family(
        network=SclPfenetNetwork(Backbone.VGG16).eval(), size=SIZE, bins=(5, 3, 2, 1), **common
    ),
    "cyctr": lambda common: cyctr_family(
        network=CyctrNetwork(Backbone.RESNET50).eval(), size=SIZE, **common
    ),
}


#: The same of options that make other graphs than a method has by default.
OTHERWISE_EXPORTED: Final[Mapping[str, Callable[[Common], Family]]] = {
    "canet-multi-scale": lambda common: canet_family(
        network=CanetNetwork().eval(), size=None, multi_scale=True, max_pixels=MAX_PIXELS, **common
    ),
    "pfenet-masked-output": lambda common: pfenet_family(
        network=PfenetNetwork(Backbone.VGG16).eval(),
        size=SIZE,
        bins=(5, 3, 2, 1),
        masking=Masking.OUTPUT,
        **common,
    ),
}


def exported(method: str) -> Family:
    """The family of a method, or of one with options; its alias is that name."""
    torch.manual_seed(0)
    return {**EXPORTED, **OTHERWISE_EXPORTED}[method]({"alias": method, "provenance": {}})


def _narrow_guided() -> GuidedNetwork:
    model = GuidedModel("tiny", channels=8, shared=True, buffers=False)
    return GuidedNetwork(model, widths=(4, 4, 6, 6, 6)).eval()
