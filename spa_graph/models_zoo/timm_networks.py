"""The families of timm: for every module the smallest network, and more where a module has several.

The table is literal, so that listing and building rows is quick and rows stay the same. This prints
the modules of the installed timm that it lacks, each with its smallest network:

    python -m spa_graph.models_zoo.timm_networks
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any

from spa_graph.models_zoo.architectures import SETTLE_BATCH, Built, import_torchvision
from spa_graph.models_zoo.catalogue import Entry

SIZE = 64  # pixels, where nothing else is said
BASE = 25.6e6  # parameters of a ResNet-50: the unit of `Entry.weight`

# module = network[:pixels][*weight] ...; the smallest network of the module comes first
TABLE = """
beit = beit_base_patch16_224*3
byoanet = halonet_h1:256 halonet26t:256 lambda_resnet26t
byobnet = mobileone_s1 repvgg_a0
cait = cait_xxs24_224
coat = coat_tiny
convit = convit_tiny
convmixer = convmixer_768_32
convnext = convnext_zepto_rms convnextv2_atto
cpubone = cpubone_nano
crossvit = crossvit_tiny_240:240
csatv2 = csatv2
cspnet = cs3darknet_focus_s
cspnext = cspnext_tiny
davit = davit_tiny
deepseek_vit = deepseek_vit_412m:112*16
deit = deit_tiny_patch16_224 deit_tiny_distilled_patch16_224
densenet = densenet121
dla = dla46x_c
dpn = dpn48b
edgenext = edgenext_xx_small
efficientformer = efficientformer_l1:224
efficientformer_v2 = efficientformerv2_s0
efficientnet = mobilenetv2_035 mixnet_s efficientnet_b0
efficientvim = efficientvim_m1
efficientvit_mit = efficientvit_b0
efficientvit_msra = efficientvit_m0
eva = vit_tiny_patch16_dinov3_qkvb eva02_tiny_patch14_224
fasternet = fasternet_t0
fastvit = fastvit_t8
focalnet = focalnet_tiny_srf
gcvit = gcvit_xxtiny
gemma4_vit = gemma4_vit_167m*7
ghostnet = ghostnet_050
hardcorenas = hardcorenas_b
hgnet = hgnetv2_b0
hiera = hiera_tiny_224
hieradet_sam2 = sam2_hiera_tiny
hrnet = hrnet_w18_small
iformer = iformer_t
inception_next = inception_next_atto
inception_resnet_v2 = inception_resnet_v2:96*2
inception_v3 = inception_v3:96
inception_v4 = inception_v4:96*2
lcnetv2 = lcnetv2_small
levit = levit_128s
lowformer = lowformer_b0
mambaout = mambaout_femto
maxxvit = maxvit_pico_rw_256 coatnet_pico_rw_224 maxvit_tiny_tf_224
metaformer = poolformerv2_s12 poolformer_s12 caformer_s18
mlp_mixer = gmlp_ti16_224 resmlp_12_224 mixer_s32_224
mobilenetv3 = mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv5 = mobilenetv5_base*3
mobilevit = mobilevit_xxs
mvitv2 = mvitv2_tiny
naflexvit = naflexvit_base_patch16_parfac_gap*3
nasnet = nasnetalarge*3
nest = nest_tiny
nextvit = nextvit_small
nfnet = nf_regnet_b0 eca_nfnet_l0 nfnet_f0*3
pit = pit_ti_224
pnasnet = pnasnet5large*3
pvt_v2 = pvt_v2_b0
qwen3_vit = qwen3_vit_88m*3
rdnet = rdnet_tiny
regnet = regnetx_002 regnety_002
repghost = repghostnet_050
repvit = repvit_m1
res2net = res2next50
resnest = resnest14d
resnet = resnet10t resnet50 seresnext26t_32x4d
resnetv2 = resnetv2_18 resnetv2_50
rexnet = rexnet_100
selecsls = selecsls42
senet = legacy_seresnet18
sequencer = sequencer2d_s
shvit = shvit_s1
sknet = skresnet18
starnet = starnet_s050
swiftformer = swiftformer_xs
swin_transformer = swin_tiny_patch4_window7_224
swin_transformer_v2 = swinv2_tiny_window16_256
swin_transformer_v2_cr = swinv2_cr_tiny_224
tiny_vit = tiny_vit_5m_224
tnt = tnt_s_legacy_patch16_224
tresnet = tresnet_m
twins = twins_svt_small twins_pcpvt_small
vgg = vgg11*5
visformer = visformer_tiny
vision_transformer = vit_tiny_patch16_224
vision_transformer_hybrid = vit_tiny_r_s16_p8_224
vision_transformer_relpos = vit_srelpos_small_patch16_224
vision_transformer_sam = samvit_base_patch16_224*3
vitamin = vitamin_small_224
volo = volo_d1_224
vovnet = ese_vovnet19b_slim_dw
xception = legacy_xception
xception_aligned = xception41p xception41
xcit = xcit_nano_12_p8_224
"""


def rows() -> Iterable[Entry]:
    """Return a row for every network of the table; an installed timm may lack some."""
    if importlib.util.find_spec("timm") is None:
        raise ImportError("timm is not installed")
    return [_row(module, name, size, weight) for module, name, size, weight in _table()]


def _table() -> Iterator[tuple[str, str, int, float]]:
    module = ""
    words = TABLE.split()
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if following == "=":
            module = word
        elif word != "=":
            network, _, weight = word.partition("*")
            name, _, size = network.partition(":")
            yield module, name, int(size or SIZE), float(weight or 1)


def _row(module: str, name: str, size: int, weight: float) -> Entry:
    return Entry("timm", name, lambda: _build(name, size), weight=weight, note=f"timm.{module}")


def _build(name: str, size: int) -> Built:
    import torch

    timm = _import_timm()
    settings = timm.models.get_pretrained_cfg(name)
    fixed = {"img_size": size} if getattr(settings, "fixed_input_size", False) else {}
    module = timm.create_model(name, pretrained=False, exportable=True, **fixed)
    return module, (torch.randn(SETTLE_BATCH, 3, size, size),), ("input",)


def _import_timm() -> Any:
    import_torchvision()
    import timm

    return timm


def smallest() -> dict[str, str]:
    """Return the smallest network of every module of the installed timm, tiny test ones apart.

    Takes minutes: all networks are built, without memory for their weights.
    """
    import torch

    timm = _import_timm()
    sizes: dict[str, list[tuple[int, str]]] = {}
    for name in timm.list_models():
        if name.startswith("test_"):
            continue
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        with torch.device("meta"):
            network = timm.create_model(name, pretrained=False)
        count = sum(parameter.numel() for parameter in network.parameters())
        sizes.setdefault(module, []).append((count, name))
    return {module: min(found)[1] for module, found in sizes.items()}


def main() -> None:
    """Print what the table lacks."""
    known = {module for module, *_ in _table()}
    for module, name in smallest().items():
        if module not in known:
            print(f"{module} = {name}")


if __name__ == "__main__":
    main()
