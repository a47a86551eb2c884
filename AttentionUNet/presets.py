"""Every number of Attention U-Net's runs. Sources: the Ascend ModelZoo package AttU_Net_for_PyTorch (README, scripts,
main.py) and, where named, LeeJunHyun/Image_Segmentation."""

from common.flags import RUN, RUN_ALIASES

NETWORK = "AttU_Net_for_PyTorch"
REPORTED_SCORES = {"Train Accuracy": "accuracy", "Jaccard": "jaccard"}  # the former as in the original scripts
LAYOUT = "isic"
DECAY_EPOCHS = 70  # of the original: its learning rate falls over the last ones
CHOICES = {"dataset": ["isic", "folder"], "arch": ["AttU_Net", "U_Net", "R2U_Net", "R2AttU_Net"]}

# The defaults of the original README: plain `python train.py`.
BASE = {
    **RUN,
    "data_path": "./dataset",
    "dataset": "isic",
    "image_size": 224,
    "augmentation_prob": 0.4,
    "mask_resize": "nearest",  # the original blends masks: see the known issues in the README
    "check_data": True,
    "arch": "AttU_Net",
    "t": 3,
    "base_channels": 64,
    "epochs": 150,
    "device_batch_size": 16,
    "total_batch_size": None,  # the original counts the images of all devices: its --batch-size is this flag
    "eval_batch_size": 16,
    "decay_epochs": None,  # the last 70, as in the original, or the later half of a run that is not longer than that
    "lr": 2e-4,
    "optimizer": "adam",
    "beta1": 0.5,
    "beta2": 0.999,
    "weight_decay": 0.0,  # the README says 1e-4; its code passes none to the optimizer
    "opt_level": "O2",
    "seed": 12345,
    "eval_every_epochs": 1,
    "eval_split": "valid",
    "output_dir": "test/output/default",  # the original README promises test/output
}

# One device: 16 images a step, 113 steps an epoch.
FULL_1P = {**BASE, "output_dir": "test/output/full_1p"}
# Eight devices, 16 images on each: published pixel accuracy 0.95 and 845.93 images/s on eight NPUs (ModelZoo README).
FULL_8P = {**BASE, "devices": 8, "lr": 1.6e-3, "output_dir": "test/output/full_8p"}
# Five epochs for the speed alone; no score is taken.
SPEED = {"epochs": 5, "validate": False}
# The trained weights of the full run of the same name; --checkpoint names others.
SCORE = {"evaluate": True}

PRESETS = {
    "default": BASE,
    "full_1p": FULL_1P,
    "full_8p": FULL_8P,
    "performance_1p": {**FULL_1P, **SPEED, "output_dir": "test/output/performance_1p"},
    "performance_8p": {**FULL_8P, **SPEED, "output_dir": "test/output/performance_8p"},
    "eval_1p": {
        **FULL_1P,
        **SCORE,
        "checkpoint": "test/output/full_1p/checkpoints/best.pt",
        "output_dir": "test/output/eval_1p",
    },
    "eval_8p": {
        **FULL_8P,
        **SCORE,
        "checkpoint": "test/output/full_8p/checkpoints/best.pt",
        "output_dir": "test/output/eval_8p",
    },
    # The embedded sample from scratch on two CPU cores, in about three minutes: a quarter of the channels, smaller
    # pictures, and a higher rate for the few steps that there is time for.
    "quickstart": {
        **BASE,
        "data_path": "sample",
        "image_size": 96,
        "base_channels": 16,
        "epochs": 32,
        "device_batch_size": 8,
        "eval_batch_size": 8,
        "lr": 1e-3,
        "eval_every_epochs": 8,
        "output_dir": "test/output/quickstart",
    },
    # Pictures and masks of one's own: what is None here is chosen by their sizes and the device, from scratch
    # unless --load_from names weights.
    "own": {
        **BASE,
        "data_path": "./data/own",
        "dataset": "folder",
        "image_size": None,
        "epochs": None,
        "device_batch_size": None,
        "lr": 5e-4,
        "eval_batch_size": 4,
        "eval_every_epochs": None,
        "output_dir": "test/output/own",
    },
    # Whether everything works here: seconds on a CPU; the numbers mean nothing.
    "tiny": {
        **BASE,
        "data_path": "sample",
        "image_size": 64,
        "base_channels": 8,
        "epochs": 2,
        "max_steps": 24,
        "device_batch_size": 2,
        "eval_batch_size": 2,
        "output_dir": "test/output/tiny",
    },
}

# spelling of the original README and scripts -> our flag
ALIASES = {
    **RUN_ALIASES,
    "batch_size": "total_batch_size",
    "num_worker": "workers",
    "model_type": "arch",
    "epoch": "epochs",
    "num_epochs": "epochs",
    "num_epochs_decay": "decay_epochs",
    "momentum": "beta1",
    "momentum1": "beta1",
    "momentum2": "beta2",
    "npu_idx": "device_list",
    "pth_path": "load_from",
    "log_step": "log_every_steps",
    "val_step": "eval_every_epochs",
    "result_path": "output_dir",
    "model_path": "output_dir",
}
