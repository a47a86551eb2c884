"""Every number of BiSeNetV1's runs.

Sources: the Ascend ModelZoo package BiSeNetV1 (README, configuration, scripts), its built-in variant
BiseNetV1_for_PyTorch and, where named, mmsegmentation."""

from common.flags import CROPS, EVAL_SPLITS, RUN, RUN_ALIASES

NETWORK = "Bisenetv1"  # as the original's report has it
REPORTED_SCORES = {"Train Accuracy": "miou", "mIoU": "miou"}  # the ModelZoo's common name, and this package's own
LAYOUT = "cityscapes"
CHOICES = {
    "eval_split": EVAL_SPLITS,
    "dataset": ["cityscapes", "folder"],
    "backbone": ["resnet50", "resnet18", "resnet101"],
}

# The original's configuration and the defaults of its train.py: plain `python train.py`.
BASE = {
    **RUN,
    **CROPS,
    "data_path": "./data/cityscapes",
    "dataset": "cityscapes",
    "base_size": 1024,  # scaled to fit into 2048 x 1024 times a factor
    "crop_size": (1024, 1024),
    "min_scale": 0.5,
    "max_scale": 2.0,
    "cat_max_ratio": 0.75,
    "check_data": True,
    "backbone": "resnet50",
    "base_channels": 64,
    "pretrained": "none",  # "No Pretrain" in the published tables
    "avg_non_ignore": False,  # mmsegmentation's default: the mean over all pixels
    "epochs": None,  # the length is counted in steps
    "total_steps": 160_000,
    "device_batch_size": 4,
    "eval_batch_size": 1,
    "warmup_epochs": None,  # the original parses --warm_up_epochs and warms up for 1,000 steps all the same
    "warmup_steps": 1000,
    "warmup_factor": 0.1,
    "lr": 0.05,  # mmsegmentation's, for 16 images a step; resnet18: 0.025
    "min_lr": 1e-4,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "eval_every_steps": 8000,
    "log_every_steps": 50,
}

# One device: 4 images a step, 743 steps an epoch. No score is published for it.
FULL_1P = BASE
# Eight devices, 32 images a step: published 77.14 mIoU on eight NPUs, 3.096 images/s on each (ModelZoo README).
FULL_8P = {**BASE, "devices": 8}
# Speed: 800 steps, and no score is taken. The original evaluates after the last of them, within its training time.
SPEED = {"validate": False, "total_steps": 800}
# The trained weights of the full run of the same name; --checkpoint names others.
SCORE = {"evaluate": True}

PRESETS = {
    "default": BASE,
    "full_1p": FULL_1P,
    "full_8p": FULL_8P,
    "performance_1p": {**FULL_1P, **SPEED},
    "performance_8p": {**FULL_8P, **SPEED},
    "eval_1p": {**FULL_1P, **SCORE, "checkpoint": "output/full_1p/checkpoints/best.pt"},
    "eval_8p": {**FULL_8P, **SCORE, "checkpoint": "output/full_8p/checkpoints/best.pt"},
    # The built-in variant: 64 images a step, a quarter of the steps; published 76.03 mIoU on eight NPUs.
    "builtin_8p": {**FULL_8P, "device_batch_size": 8, "total_steps": 40_000, "lr": 0.2, "eval_every_steps": 4000},
    # The embedded sample from scratch on two cores, in under four minutes. A quarter of the channels and small batches
    # make many steps of the time there is; few scales are enough for pictures that are all drawn at one.
    "quickstart": {
        **BASE,
        "data_path": "sample",
        "base_size": 256,
        "crop_size": (192, 192),
        "min_scale": 0.8,
        "max_scale": 1.25,
        "backbone": "resnet18",
        "base_channels": 16,
        "total_steps": 1200,
        "eval_batch_size": 4,
        "optimizer": "adamw",
        "lr": 3e-3,
        "weight_decay": 0.01,
        "warmup_steps": 50,
        "eval_every_steps": 600,
        "log_every_steps": 10,
    },
    # Pictures and masks of one's own: what is None here is chosen by their sizes and the device, from scratch
    # unless --pretrained or --load_from names weights.
    "own": {
        **BASE,
        "data_path": "./data/own",
        "dataset": "folder",
        "pretrained": "none",
        "base_size": None,
        "crop_size": None,
        "device_batch_size": None,
        "total_steps": None,
        "warmup_steps": 50,
        "lr": 0.025,
        "eval_every_steps": None,
        "log_every_steps": 10,
    },
    # Whether everything works here: seconds on a CPU; the numbers mean nothing.
    "tiny": {
        **BASE,
        "data_path": "sample",
        "base_size": 64,
        "crop_size": (64, 64),
        "backbone": "resnet18",
        "total_steps": 24,
        "device_batch_size": 2,
        "eval_batch_size": 2,
        "warmup_steps": 6,
        "eval_every_steps": 12,
        "log_every_steps": 4,
    },
}

# spelling of the original README, scripts and configuration files -> our flag
ALIASES = {**RUN_ALIASES, "warm_up_epochs": "warmup_epochs"}
