"""Every number of DynamicUNet's runs. Sources: the Ascend ModelZoo package DynamicUNet_ID4080_for_Pytorch (README,
scripts, runner) on the training code of awesome-semantic-segmentation-pytorch."""

from common.flags import CROPS, EVAL_SPLITS, RUN, RUN_ALIASES

NETWORK = "DynamicUNet_ID4080_for_Pytorch"
REPORTED_SCORES = {"Train Accuracy": "miou"}  # what the closing lines call a score
LAYOUT = "voc"
CHOICES = {
    "eval_split": EVAL_SPLITS,
    "arch": ["dynamicunet"],
    "backbone": ["resnet50", "resnet18", "resnet34", "resnet101", "resnet152"],
    "dataset": ["pascal_voc", "pascal_aug", "folder"],
}

# The defaults of the runner: plain `python train.py`. (The README's own table of 240 images, rate 1 and decay 4e-5 is
# that of another model: no script passes it.)
BASE = {
    **RUN,
    **CROPS,
    "data_path": "./VOCdevkit",
    "dataset": "pascal_voc",
    "base_size": 520,
    "crop_size": (480, 480),
    "min_scale": 0.5,
    "max_scale": 2.0,
    "eval_protocol": "whole",  # the published score is one of centre crops: see the known issues in the README
    "check_data": True,
    "arch": "dynamicunet",
    "backbone": "resnet50",
    "base_channels": 64,
    "pretrained": "./pretrained",
    "epochs": 50,
    "device_batch_size": 4,
    "eval_batch_size": 4,
    "warmup_steps": 0,
    "warmup_factor": 1 / 3,
    "lr": 1e-4,
    "scale_lr": True,
    # The runner means 1 for the encoder and trains it with 10 all the same, which gave the published scores.
    "encoder_lr_factor": 10.0,
    "head_lr_factor": 10.0,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "eval_every_epochs": 1,
    "save_every_epochs": 0,  # 10 there; here each evaluation leaves a checkpoint
}

# One device: train_full_1p.sh of the package's second set of scripts; 366 steps an epoch.
FULL_1P = {**BASE, "warmup_steps": 20, "eval_every_epochs": 5}
# Eight devices, 32 images a step: published 0.535 mIoU and 48 images/s on eight NPUs (the package's first README).
FULL_8P = {**FULL_1P, "devices": 8}
# Speed does not depend on the initial weights, and no score is taken. The scripts stop after 50 steps.
SPEED = {"pretrained": "none", "validate": False, "warmup_steps": 0, "max_steps": 50}
# The trained weights of the full run of the same name; --checkpoint names others.
SCORE = {"evaluate": True, "pretrained": "none"}

PRESETS = {
    "default": BASE,
    "full_1p": FULL_1P,
    "full_8p": FULL_8P,
    "performance_1p": {**FULL_1P, **SPEED},
    "performance_8p": {**FULL_8P, **SPEED},
    "eval_1p": {**FULL_1P, **SCORE, "checkpoint": "output/full_1p/checkpoints/best.pt"},
    "eval_8p": {**FULL_8P, **SCORE, "checkpoint": "output/full_8p/checkpoints/best.pt"},
    # The later README of the package: published 0.521 mIoU and 52.76 images/s on eight NPUs.
    "full_8p_batch48": {**FULL_8P, "device_batch_size": 6, "lr": 1.5e-4},
    # What the runner means to do: ten times the rate for the decoder alone. No published score.
    "split_lr": {**FULL_1P, "encoder_lr_factor": 1.0},
    # The embedded sample from scratch on two cores, in under four minutes. A narrow network and pictures seen at two
    # thirds of their size make many steps of the time there is; without pretrained weights encoder and decoder train
    # alike.
    "quickstart": {
        **BASE,
        "data_path": "sample",
        "backbone": "resnet18",
        "base_channels": 16,
        "pretrained": "none",
        "base_size": 64,
        "crop_size": (64, 64),
        "loss": "ce:1,dice:1",  # things are a quarter of the pixels, and each kind of them little
        "scales": [2 / 3],  # 64 of the 96 rows of a picture, as in training
        "min_scale": 0.8,
        "max_scale": 1.25,
        "epochs": 12,
        "device_batch_size": 8,
        "warmup_steps": 50,  # the decoder has no batch norm: this rate needs a warm-up, and gradients that are clipped
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "encoder_lr_factor": 1.0,
        "head_lr_factor": 1.0,
        "eval_every_epochs": 6,
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
        "warmup_steps": 100,  # the decoder has no batch norm: without a warm-up this rate makes the loss jump
        "lr": 0.03,
        "scale_lr": False,
        "encoder_lr_factor": 1.0,
        "head_lr_factor": 1.0,
        "eval_batch_size": 1,
        "eval_every_epochs": None,
    },
    # Whether everything works here: seconds on a CPU; the numbers mean nothing.
    "tiny": {
        **BASE,
        "data_path": "sample",
        "backbone": "resnet18",
        "pretrained": "none",
        "base_size": 64,
        "crop_size": (64, 64),
        "epochs": 2,
        "max_steps": 24,
        "device_batch_size": 2,
        "eval_batch_size": 2,
        "lr": 4e-4,  # so that eight steps change something
    },
}

# spelling of the original README, scripts and runner -> our flag, or our flag with its value
ALIASES = {
    **RUN_ALIASES,
    "dataset_path": "data_path",
    "model": "arch",
    "more_path1": "pretrained",
    "warmup_iters": "warmup_steps",
    "perf_iter": "max_steps",
    "perf_only": {"validate": False},
    "skip_val": {"validate": False},
    "no_cuda": {"device": "cpu"},
    "log_iter": "log_every_steps",
    "val_epoch": "eval_every_epochs",
    "save_epoch": "save_every_epochs",
}
