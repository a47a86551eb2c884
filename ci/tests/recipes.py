"""What the published training recipes do, as numbers that owe nothing to the code of this repository.

Worked out from the originals' configurations, scripts and training programs, which are named at each block. Where a
folder's README says that it does something else on purpose, that is what stands here, with a comment.

Steps are counted from 0, and so are epochs. Images that do not fill a step are left over in every folder here, where
most originals do one step more an epoch. Every evaluation leaves a checkpoint (README of each folder, Training).
"""

from math import cos, pi
from typing import NamedTuple


class Recipe(NamedTuple):
    """One preset of one folder."""

    folder: str
    preset: str
    images_in_train_set: int
    world_size: int
    images_per_step: int  # of all devices
    steps_per_epoch: int
    schedule_steps: int  # over which the learning rate falls
    optimizer: str
    momentum: float | tuple[float, float]  # of SGD, or Adam's betas
    weight_decay: float  # of all parameters
    rates: dict[int, tuple[float, ...]]  # step -> learning rates: backbone or encoder, heads; or of the single group
    evaluations: tuple[int, ...]  # the first two and the last two steps that an evaluation follows; () without any
    evaluation_count: int  # in the whole run
    loss: dict[str, float]  # term -> weight, in the order of the network's outputs
    loss_kind: str
    opt_level: str | None  # None: published in float32, while the preset names no level of its own
    initial_weights: str  # a folder for the ImageNet file, or none
    validate: bool
    stops_after: int = 0  # steps, where the run ends before its schedule; 0: with the schedule


CITYSCAPES_TRAIN = 2975  # pictures of leftImg8bit/train (cityscapes-dataset.com)
VOC_TRAIN = 1464  # names in VOC2012/ImageSets/Segmentation/train.txt; with SBD, which no preset takes, 10,582
ISIC_TRAIN = 1815  # 0.7 of the 2,594 pictures of ISIC 2018, task 1, rounded down (AttU_Net_for_PyTorch, README)

SCORED = {"initial_weights": "./pretrained", "validate": True}
# Speed runs start from random weights and take no score (README, Training), where the originals load the ImageNet file
# and some evaluate on the way.
SPEED = {"initial_weights": "none", "validate": False, "evaluations": (), "evaluation_count": 0}

# ICNet gives each of its logits the nearest label, where the original blends class ids (README, "Labels in the loss").
ICNET = {
    "folder": "ICNet", "images_in_train_set": CITYSCAPES_TRAIN, "optimizer": "SGD", "momentum": 0.9,
    "weight_decay": 1e-4, "loss": {"main": 1.0, "aux0": 0.4, "aux1": 0.4}, "loss_kind": "mean over labelled pixels",
}  # fmt: skip
DEEPLABV3 = {
    "folder": "DeeplabV3", "images_in_train_set": CITYSCAPES_TRAIN, "optimizer": "SGD", "momentum": 0.9,
    "weight_decay": 5e-4, "loss": {"main": 1.0, "aux0": 0.4}, "loss_kind": "mean over all pixels",
}  # fmt: skip
BISENETV1 = {
    "folder": "BiSeNetv1", "images_in_train_set": CITYSCAPES_TRAIN, "optimizer": "SGD", "momentum": 0.9,
    "weight_decay": 5e-4, "loss": {"main": 1.0, "aux0": 1.0, "aux1": 1.0}, "loss_kind": "mean over all pixels",
    "opt_level": "O1", "initial_weights": "none",  # "No Pretrain" in the published tables
}  # fmt: skip
DYNAMICUNET = {
    "folder": "DynamicUNet", "images_in_train_set": VOC_TRAIN, "optimizer": "SGD", "momentum": 0.9,
    "weight_decay": 1e-4, "loss": {"main": 1.0}, "loss_kind": "mean over labelled pixels",
}  # fmt: skip
# Binary: cross entropy of the sigmoid, the mean over the labelled pixels. Masks are 0 and 1, those of the original have
# soft edges (README, "Masks"). The original's README says weight decay 1e-4, which its code passes nowhere.
ATTENTIONUNET = {
    "folder": "AttentionUNet", "images_in_train_set": ISIC_TRAIN, "optimizer": "Adam", "momentum": (0.5, 0.999),
    "weight_decay": 0.0, "loss": {"main": 1.0}, "loss_kind": "binary", "opt_level": "O2", "initial_weights": "none",
}  # fmt: skip

RECIPES = [
    # ---- ICNet: ModelZoo package ICNet_ID1781_for_PyTorch; configs/icnet_1p.yaml, icnet_8p.yaml; utils/loss.py.
    # train.py, Trainer.adjust_learning_rate: in epoch e of E, for all groups alike, base (e + 1) / 4 where e < 3, then
    # base (1 + cos(pi (e - 3) / (E - 3))) / 2. The steps below are in the epochs 1, 100 and 199.
    # README, table of parameters: 16 images, rate 0.01, 200 epochs
    Recipe(
        **ICNET, **SCORED, preset="default", world_size=1, images_per_step=16, steps_per_epoch=185, opt_level="O1",
        schedule_steps=200 * 185, evaluations=(184, 369, 36_814, 36_999), evaluation_count=200,
        rates={185: (0.01 * 2 / 4,) * 2, 18_684: (0.005 * (1 + cos(pi * 97 / 197)),) * 2,
               36_999: (0.005 * (1 + cos(pi * 196 / 197)),) * 2},
    ),
    # test/train_full_1p.sh (200 epochs, whatever the yaml says), icnet_1p.yaml
    Recipe(
        **ICNET, **SCORED, preset="full_1p", world_size=1, images_per_step=7, steps_per_epoch=425, opt_level="O1",
        schedule_steps=200 * 425, evaluations=(424, 849, 84_574, 84_999), evaluation_count=200,
        rates={425: (0.01 * 2 / 4,) * 2, 42_924: (0.005 * (1 + cos(pi * 97 / 197)),) * 2,
               84_999: (0.005 * (1 + cos(pi * 196 / 197)),) * 2},
    ),
    # test/train_full_8p.sh, icnet_8p.yaml: evaluated after every fifth epoch (36 times) and each of the last tenth
    # (20); the original's condition, epoch > int(0.9 * epochs), leaves out the first of the tenth: 55 evaluations there
    Recipe(
        **ICNET, **SCORED, preset="full_8p", world_size=8, images_per_step=128, steps_per_epoch=23, opt_level="O1",
        schedule_steps=200 * 23, evaluations=(114, 229, 4576, 4599), evaluation_count=36 + 20,
        rates={23: (0.1 * 2 / 4,) * 2, 2322: (0.05 * (1 + cos(pi * 97 / 197)),) * 2,
               4599: (0.05 * (1 + cos(pi * 196 / 197)),) * 2},
    ),
    # test/train_performance_1p.sh: two epochs, both of the warm-up
    Recipe(
        **ICNET, **SPEED, preset="performance_1p", world_size=1, images_per_step=7, steps_per_epoch=425,
        schedule_steps=2 * 425, opt_level="O1",
        rates={424: (0.01 / 4,) * 2, 425: (0.01 * 2 / 4,) * 2, 849: (0.01 * 2 / 4,) * 2},
    ),
    # test/train_performance_8p.sh: five epochs; the steps are in the epochs 1, 3 and 4
    Recipe(
        **ICNET, **SPEED, preset="performance_8p", world_size=8, images_per_step=128, steps_per_epoch=23,
        schedule_steps=5 * 23, opt_level="O1",
        rates={23: (0.1 * 2 / 4,) * 2, 91: (0.1,) * 2, 114: (0.05 * (1 + cos(pi * 1 / 2)),) * 2},
    ),
    # liminn/ICNet-pytorch: configs/icnet.yaml; train.py (ten times the rate for what is not pretrained, the schedule is
    # stepped before each iteration); utils/lr_scheduler.py, IterationPolyLR: base (1 - k / N) ** 0.9 with k = step + 1
    Recipe(
        **ICNET, **SCORED, preset="liminn", world_size=1, images_per_step=7, steps_per_epoch=425, opt_level=None,
        schedule_steps=200 * 425, evaluations=(424, 849, 84_574, 84_999), evaluation_count=200,
        rates={0: (0.01 * (1 - 1 / 85_000) ** 0.9, 0.1 * (1 - 1 / 85_000) ** 0.9),
               42_499: (0.01 * 0.5**0.9, 0.1 * 0.5**0.9), 84_999: (0.0, 0.0)},
    ),
    # ---- DeepLabV3: ModelZoo package DeeplabV3_for_Pytorch on mmsegmentation 0.15; configs/deeplabv3/
    # deeplabv3_r50-d8_512x1024_40k_cityscapes.py (8p), ..._1p.py; configs/_base_/schedules/schedule_40k.py. mmcv,
    # PolyLrUpdaterHook: (base - 1e-4) (1 - step / N) ** 0.9 + 1e-4, without a warm-up. The default here is full_1p.
    *(Recipe(
        **DEEPLABV3, **SCORED, preset=preset, world_size=1, images_per_step=6, steps_per_epoch=495, opt_level="O1",
        schedule_steps=54_000, evaluations=(5999, 11_999, 47_999, 53_999), evaluation_count=9,
        rates={0: (0.008,), 27_000: (0.0079 * 0.5**0.9 + 1e-4,), 53_999: (0.0079 * (1 / 54_000) ** 0.9 + 1e-4,)},
    ) for preset in ("default", "full_1p")),
    Recipe(
        **DEEPLABV3, **SCORED, preset="full_8p", world_size=8, images_per_step=48, steps_per_epoch=61, opt_level="O1",
        schedule_steps=7000, evaluations=(999, 1999, 5999, 6999), evaluation_count=7,
        rates={0: (0.06,), 3500: (0.0599 * 0.5**0.9 + 1e-4,), 6999: (0.0599 * (1 / 7000) ** 0.9 + 1e-4,)},
    ),
    # test/train_performance_*.sh: max_iters=1000, evaluation.interval=10000 or --no-validate; the rate is not scaled.
    # The script for several machines means one without --nnodes.
    Recipe(
        **DEEPLABV3, **SPEED, preset="performance_1p", world_size=1, images_per_step=6, steps_per_epoch=495,
        schedule_steps=1000, opt_level="O1",
        rates={0: (0.008,), 500: (0.0079 * 0.5**0.9 + 1e-4,), 999: (0.0079 * 0.001**0.9 + 1e-4,)},
    ),
    *(Recipe(
        **DEEPLABV3, **SPEED, preset=f"performance_{name}", world_size=devices, images_per_step=6 * devices,
        steps_per_epoch=steps, schedule_steps=1000, opt_level="O1",
        rates={0: (0.06,), 500: (0.0599 * 0.5**0.9 + 1e-4,), 999: (0.0599 * 0.001**0.9 + 1e-4,)},
    ) for name, devices, steps in (("4p", 4, 123), ("8p", 8, 61), ("multinodes", 8, 61))),
    # mmsegmentation, configs/deeplabv3/deeplabv3_r50-d8_512x1024_40k_cityscapes.py: 2 images on each of four devices
    Recipe(
        **DEEPLABV3, **SCORED, preset="mmseg_4p", world_size=4, images_per_step=8, steps_per_epoch=371, opt_level=None,
        schedule_steps=40_000, evaluations=(3999, 7999, 35_999, 39_999), evaluation_count=10,
        rates={0: (0.01,), 20_000: (0.0099 * 0.5**0.9 + 1e-4,), 39_999: (0.0099 * (1 / 40_000) ** 0.9 + 1e-4,)},
    ),
    # ---- BiSeNetV1: ModelZoo package contrib BiSeNetV1 on mmsegmentation 0.10; configs/bisenetv1/
    # bisenetv1_r50-d32_4x4_1024x1024_160k_cityscapes.py, ..._1k_... (speed); configs/_base_/schedules/schedule_160k.py,
    # schedule_20k.py (in truth 800 steps). The rate as above, times 1 - 0.9 (1 - step / 1000) in the first 1,000 steps.
    # The scripts train with 0.05 on one device and on eight alike. The default here is full_1p.
    *(Recipe(
        **BISENETV1, preset=preset, world_size=devices, images_per_step=4 * devices, steps_per_epoch=steps,
        schedule_steps=160_000, evaluations=(7999, 15_999, 151_999, 159_999), evaluation_count=20, validate=True,
        rates={500: ((0.0499 * (1 - 500 / 160_000) ** 0.9 + 1e-4) * 0.55,), 80_000: (0.0499 * 0.5**0.9 + 1e-4,),
               159_999: (0.0499 * (1 / 160_000) ** 0.9 + 1e-4,)},
    ) for preset, devices, steps in (("default", 1, 743), ("full_1p", 1, 743), ("full_8p", 8, 92))),
    # all within the warm-up; the original evaluates after the last step, here no score is taken (README, "Speed runs")
    *(Recipe(
        **BISENETV1 | SPEED, preset=preset, world_size=devices, images_per_step=4 * devices, steps_per_epoch=steps,
        schedule_steps=800,
        rates={0: (0.05 * 0.1,), 400: ((0.0499 * 0.5**0.9 + 1e-4) * (1 - 0.9 * 0.6),),
               799: ((0.0499 * (1 / 800) ** 0.9 + 1e-4) * (1 - 0.9 * 0.201),)},
    ) for preset, devices, steps in (("performance_1p", 1, 743), ("performance_8p", 8, 92))),
    # ModelZoo package built-in BiseNetV1_for_PyTorch: ..._160k_cityscapes_8p.py with schedule_40k.py
    Recipe(
        **BISENETV1, preset="builtin_8p", world_size=8, images_per_step=64, steps_per_epoch=46, schedule_steps=40_000,
        evaluations=(3999, 7999, 35_999, 39_999), evaluation_count=10, validate=True,
        rates={500: ((0.1999 * (1 - 500 / 40_000) ** 0.9 + 1e-4) * 0.55,), 20_000: (0.1999 * 0.5**0.9 + 1e-4,),
               39_999: (0.1999 * (1 / 40_000) ** 0.9 + 1e-4,)},
    ),
    # ---- DynamicUNet: ModelZoo package DynamicUNet_for_Pytorch (ID4080); runner.py: the base is --lr times the number
    # of devices, and by a wrong name ten times that for the encoder too (README, "Learning rate of the encoder").
    # awesome-semantic-segmentation-pytorch, core/utils/lr_scheduler.py, WarmupPolyLR, stepped before each iteration:
    # with k = step + 1 and W steps of warm-up of N, base ((1 - k / W) / 3 + k / W), then
    # base (1 - (k - W) / (N - W)) ** 0.9.
    # runner.py, defaults of its flags: W = 0, no --amp; no ImageNet file, while this README's default names one
    Recipe(
        **DYNAMICUNET, **SCORED, preset="default", world_size=1, images_per_step=4, steps_per_epoch=366, opt_level=None,
        schedule_steps=50 * 366, evaluations=(365, 731, 17_933, 18_299), evaluation_count=50,
        rates={0: (1e-3 * (1 - 1 / 18_300) ** 0.9,) * 2, 9149: (1e-3 * 0.5**0.9,) * 2, 18_299: (0.0,) * 2},
    ),
    # test/train_ID4080_DynamicUNet_RT2_full_1p.sh: W = 20, base 1e-4 * 1 * 10. split_lr is what runner.py means to do:
    # a tenth of that for the encoder
    *(Recipe(
        **DYNAMICUNET, **SCORED, preset=preset, world_size=1, images_per_step=4, steps_per_epoch=366, opt_level="O1",
        schedule_steps=50 * 366, evaluations=(1829, 3659, 16_469, 18_299), evaluation_count=10,
        rates={9: (encoder * 2 / 3, 1e-3 * 2 / 3), 18_299: (0.0, 0.0),
               9149: (encoder * (1 - 9130 / 18_280) ** 0.9, 1e-3 * (1 - 9130 / 18_280) ** 0.9)},
    ) for preset, encoder in (("full_1p", 1e-3), ("split_lr", 1e-4))),
    # test/train_full_8p.sh of the first README (0.535 mIoU): W = 20, base 1e-4 * 8 * 10
    Recipe(
        **DYNAMICUNET, **SCORED, preset="full_8p", world_size=8, images_per_step=32, steps_per_epoch=45, opt_level="O1",
        schedule_steps=50 * 45, evaluations=(224, 449, 2024, 2249), evaluation_count=10,
        rates={9: (8e-3 * 2 / 3,) * 2, 1124: (8e-3 * (1 - 1105 / 2230) ** 0.9,) * 2, 2249: (0.0,) * 2},
    ),
    # the same script of the later README (0.521 mIoU): base 1.5e-4 * 8 * 10
    Recipe(
        **DYNAMICUNET, **SCORED, preset="full_8p_batch48", world_size=8, images_per_step=48, steps_per_epoch=30,
        schedule_steps=50 * 30, opt_level="O1", evaluations=(149, 299, 1349, 1499), evaluation_count=10,
        rates={9: (1.2e-2 * 2 / 3,) * 2, 749: (1.2e-2 * (1 - 730 / 1480) ** 0.9,) * 2, 1499: (0.0,) * 2},
    ),
    # test/train_performance_1p.sh, ..._8p.sh: W = 0, and the schedule of 50 epochs is cut off. README, Training: after
    # 50 steps on both; runner.py: after min(steps of an epoch, 50), on eight devices 45
    *(Recipe(
        **DYNAMICUNET, **SPEED, preset=preset, world_size=devices, images_per_step=4 * devices, steps_per_epoch=steps,
        schedule_steps=50 * steps, opt_level="O1", stops_after=50,
        rates={k - 1: (1e-3 * devices * (1 - k / (50 * steps)) ** 0.9,) * 2 for k in (1, 25, 45)},
    ) for preset, devices, steps in (("performance_1p", 1, 366), ("performance_8p", 8, 45))),
    # ---- Attention U-Net: ModelZoo package AttU_Net_for_PyTorch; main.py (flags), solver.py: after each epoch e of 150
    # with e + 1 > 80 the rate is lowered by base / 70, so first in epoch 81. The steps are in the epochs 80, 81, 149.
    *(Recipe(
        **ATTENTIONUNET, preset=preset, world_size=1, images_per_step=16, steps_per_epoch=113,
        schedule_steps=150 * 113, evaluations=(112, 225, 16_836, 16_949), evaluation_count=150, validate=True,
        rates={9152: (2e-4,), 9153: (2e-4 * 69 / 70,), 16_949: (2e-4 * 1 / 70,)},
    ) for preset in ("default", "full_1p")),
    Recipe(
        **ATTENTIONUNET, preset="full_8p", world_size=8, images_per_step=128, steps_per_epoch=14,
        schedule_steps=150 * 14, evaluations=(13, 27, 2085, 2099), evaluation_count=150, validate=True,
        rates={1133: (1.6e-3,), 1134: (1.6e-3 * 69 / 70,), 2099: (1.6e-3 * 1 / 70,)},
    ),
    # test/train_performance_1p.sh, ..._8p.sh: five epochs. README, "Schedule": up to 70 epochs the rate falls in the
    # later half, so by 1 / 2 after each of the last 2 of 5; the original lowers it by base / 70 after every epoch. The
    # steps are in the epochs 1, 3 and 4.
    *(Recipe(
        **ATTENTIONUNET | SPEED, preset=preset, world_size=devices, images_per_step=16 * devices, steps_per_epoch=steps,
        schedule_steps=5 * steps, rates={steps: (base,), 4 * steps - 1: (base,), 5 * steps - 1: (base / 2,)},
    ) for preset, devices, steps, base in (("performance_1p", 1, 113, 2e-4), ("performance_8p", 8, 14, 1.6e-3))),
]  # fmt: skip
