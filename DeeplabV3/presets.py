"""Every number of DeepLabV3's runs. Sources: the Ascend ModelZoo package DeeplabV3_for_PyTorch (its configurations
deeplabv3_r50-d8_512x1024_40k_cityscapes*.py and its scripts) and, where named, mmsegmentation."""

from common.flags import CROPS, EVAL_SPLITS, RUN, RUN_ALIASES

NETWORK = "DeeplabV3_for_PyTorch"
REPORTED_SCORES = {"Train Accuracy": "pixel_accuracy", "mIoU": "miou"}  # the original's accuracy is that of pixels
LAYOUT = "cityscapes"
CHOICES = {
    "eval_split": EVAL_SPLITS,
    "dataset": ["cityscapes", "folder"],
    # those with a number name the backbone too, as the file names of the original's configurations do
    "arch": ["deeplabv3", "deeplabv3_r18", "deeplabv3_r50", "deeplabv3_r101"],
    "backbone": ["resnet50", "resnet18", "resnet101"],
}

# What plain `python train.py` does: the run on one device, with the values of its configuration. Those of the original
# README (lr 0.01, weight decay 1e-4, 1000 epochs) are not those that its scripts train with.
BASE = {
    **RUN,
    **CROPS,
    "data_path": "./data/cityscapes",
    "dataset": "cityscapes",
    "base_size": 1024,  # scaled to fit into 2048 x 1024 times a factor
    "crop_size": (512, 1024),
    "min_scale": 0.5,
    "max_scale": 2.0,
    "cat_max_ratio": 0.75,
    "check_data": True,
    "arch": "deeplabv3",
    "backbone": "resnet50",
    "base_channels": 64,
    "pretrained": "./pretrained",
    "avg_non_ignore": False,  # mmsegmentation's default: the mean over all pixels
    "epochs": None,  # the length is counted in steps
    "total_steps": 54_000,
    "device_batch_size": 6,
    "eval_batch_size": 1,
    "lr": 0.008,
    "min_lr": 1e-4,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "eval_every_steps": 6000,
    "log_every_steps": 50,
    "seed": 1,
}

# One device: 6 images a step, 495 steps an epoch. Published 91.11 % pixel accuracy (ModelZoo README).
FULL_1P = BASE
# Eight devices: 48 images a step, 61 steps an epoch. Published 96.13 % pixel accuracy, 78.98 mIoU (ModelZoo README).
FULL_8P = {**BASE, "devices": 8, "total_steps": 7000, "lr": 0.06, "eval_every_steps": 1000}
# Speed: 1,000 steps. It does not depend on the initial weights, and no score is taken.
SPEED = {"pretrained": "none", "validate": False, "total_steps": 1000}
# The trained weights of the full run of the same name; --checkpoint names others.
SCORE = {"evaluate": True, "pretrained": "none"}

PRESETS = {
    "default": BASE,
    "full_1p": FULL_1P,
    "full_8p": FULL_8P,
    "performance_1p": {**FULL_1P, **SPEED},
    "performance_4p": {**FULL_8P, **SPEED, "devices": 4},
    "performance_8p": {**FULL_8P, **SPEED},
    # as in the original one machine unless --nnodes says more
    "performance_multinodes": {**FULL_8P, **SPEED, "master_port": 23333},
    "eval_1p": {**FULL_1P, **SCORE, "checkpoint": "output/full_1p/checkpoints/best.pt"},
    "eval_8p": {**FULL_8P, **SCORE, "checkpoint": "output/full_8p/checkpoints/best.pt"},
    # mmsegmentation's own recipe: 8 images a step with synchronised batch norms, 79.09 mIoU (its model zoo).
    "mmseg_4p": {
        **BASE,
        "devices": 4,
        "device_batch_size": 2,
        "total_steps": 40_000,
        "lr": 0.01,
        "eval_every_steps": 4000,
        "sync_bn": True,
    },
    # The embedded sample from scratch on two cores, in under four minutes. A quarter of the channels and small batches
    # of pictures seen at 3/4 of their size make many steps of the time there is; few scales are enough, as all pictures
    # are drawn at one.
    "quickstart": {
        **BASE,
        "data_path": "sample",
        "pretrained": "none",
        "base_size": 192,
        "crop_size": (128, 128),
        "scales": [0.75],  # 192 of the 256 rows of a picture, as in training
        "min_scale": 0.8,
        "max_scale": 1.25,
        "backbone": "resnet18",
        "base_channels": 16,
        "total_steps": 1400,
        "device_batch_size": 4,
        "eval_batch_size": 4,
        "optimizer": "adamw",
        "lr": 3e-3,
        "weight_decay": 0.01,
        "eval_every_steps": 700,
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
        "lr": 0.02,
        "eval_every_steps": None,
        "log_every_steps": 10,
    },
    # Whether everything works here: seconds on a CPU; the numbers mean nothing.
    "tiny": {
        **BASE,
        "data_path": "sample",
        "pretrained": "none",
        "base_size": 64,
        "crop_size": (64, 64),
        "backbone": "resnet18",
        "total_steps": 24,
        "device_batch_size": 2,
        "eval_batch_size": 2,
        "lr": 0.1,
        "eval_every_steps": 12,
        "log_every_steps": 4,
    },
}

# spelling of the original README, scripts and programs -> our flag
ALIASES = {**RUN_ALIASES, "epoch": "epochs", "learning_rate": "lr"}
