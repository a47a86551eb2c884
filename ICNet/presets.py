"""Every number of ICNet's runs. Sources: the Ascend ModelZoo package ICNet_ID1781_for_PyTorch (README, icnet_1p.yaml,
icnet_8p.yaml, scripts) and, where named, liminn/ICNet-pytorch."""

from common.flags import CROPS, EVAL_SPLITS, RUN, RUN_ALIASES

NETWORK = "ICNet_ID1781_for_PyTorch"
REPORTED_SCORES = {"Train Accuracy": "miou"}  # what the closing lines call a score
LAYOUT = "cityscapes"
CHOICES = {
    "eval_split": EVAL_SPLITS,
    "dataset": ["cityscapes", "folder"],
    "arch": ["icnet"],
    "backbone": ["resnet50", "resnet101", "resnet152"],
}

# The defaults of the original README: plain `python train.py`.
BASE = {
    **RUN,
    **CROPS,
    "data_path": "./data/cityscapes",
    "dataset": "cityscapes",
    "base_size": 1024,
    "crop_size": (960, 960),
    "min_scale": 0.5,
    "max_scale": 2.0,
    "check_data": True,
    "arch": "icnet",
    "backbone": "resnet50",
    "base_channels": 64,
    "pretrained": "./pretrained",
    "label_resize": "aligned",  # the original blends class ids: see the known issues in the README
    "epochs": 200,
    "device_batch_size": 16,
    "eval_batch_size": 16,
    "schedule": "cosine_epoch",
    "warmup_epochs": 3,
    "lr": 0.01,
    "head_lr_factor": 1.0,  # the ModelZoo runs train all layers alike; liminn's poly schedule uses 10
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "eval_every_epochs": 1,
    "eval_each_epoch_from": 1.0,
}

# One device: 7 images a step, 425 steps an epoch.
FULL_1P = {**BASE, "device_batch_size": 7, "eval_batch_size": 1}
# Eight devices: published 68.9 mIoU and 147.2 images/s on eight NPUs (ModelZoo README). The original evaluates every
# 5 epochs, and after every epoch in the last tenth of the training. It validates 16 images at a time, which needs
# 2.5 GB for the logits alone; the score does not depend on that number.
FULL_8P = {
    **BASE,
    "devices": 8,
    "device_batch_size": 16,
    "eval_batch_size": 2,
    "lr": 0.1,
    "eval_every_epochs": 5,
    "eval_each_epoch_from": 0.9,
}
# Speed does not depend on the initial weights, and no score is taken.
SPEED = {"pretrained": "none", "validate": False}
# The trained weights of the full run of the same name; --checkpoint names others.
SCORE = {"evaluate": True, "pretrained": "none"}

PRESETS = {
    "default": BASE,
    "full_1p": FULL_1P,
    "full_8p": FULL_8P,
    "performance_1p": {**FULL_1P, **SPEED, "epochs": 2},
    "performance_8p": {**FULL_8P, **SPEED, "epochs": 5},
    "eval_1p": {**FULL_1P, **SCORE, "checkpoint": "output/full_1p/checkpoints/best.pt"},
    "eval_8p": {**FULL_8P, **SCORE, "checkpoint": "output/full_8p/checkpoints/best.pt"},
    # liminn/ICNet-pytorch's recipe: poly schedule, ten times the rate for the layers that are not pretrained;
    # 71.0 mIoU reported for 200 epochs at crop 960.
    "liminn": {**FULL_1P, "schedule": "poly", "head_lr_factor": 10.0},
    # The embedded sample from scratch on two cores, in under four minutes. A quarter of the channels and small batches
    # make many steps of the time there is; few scales are enough for pictures that are all drawn at one.
    "quickstart": {
        **BASE,
        "data_path": "sample",
        "pretrained": "none",
        "base_size": 256,
        "crop_size": (192, 192),
        "min_scale": 0.8,
        "max_scale": 1.25,
        "base_channels": 16,
        "epochs": 50,
        "device_batch_size": 4,
        "eval_batch_size": 4,
        "optimizer": "adamw",
        "lr": 3e-3,
        "weight_decay": 0.01,
        "warmup_epochs": 1,
        "eval_every_epochs": 25,
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
        "epochs": None,
        "warmup_epochs": 1,
        "lr": 0.05,
        "eval_batch_size": 1,
        "eval_every_epochs": None,
    },
    # Whether everything works here: seconds on a CPU; the numbers mean nothing.
    "tiny": {
        **BASE,
        "data_path": "sample",
        "pretrained": "none",
        "base_size": 64,
        "crop_size": (64, 64),
        "epochs": 2,
        "max_steps": 24,
        "device_batch_size": 2,
        "eval_batch_size": 2,
    },
}

# spelling of the original README, scripts and configuration files -> our flag
ALIASES = {
    **RUN_ALIASES,
    "cityscapes_root": "data_path",
    "name": "arch",
    "more_path1": "pretrained",
    "train_batch_size": "device_batch_size",
    "valid_batch_size": "eval_batch_size",
    "init_lr": "lr",
    "ckpt_path": "checkpoint",
    "log_iter": "log_every_steps",
    "val_epoch": "eval_every_epochs",
}
