"""The one vocabulary of flags: each name with its type, its topic and one line of help.

A folder accepts the names that its presets have (`common.args`); a new flag of all folders is a line here and its value
in RUN. Nothing here imports torch.
"""

from common.values import (
    amount,
    as_number,
    channels,
    count,
    device_list,
    factors,
    frozen,
    loss,
    loss_scale,
    path,
    port,
    positive,
    probability,
    seed,
    share,
    size,
    steps,
    wait,
    workers,
)

# topic -> name -> (type or choices, help). `bool` makes a switch with a --no- form.
FLAGS: dict[str, dict[str, tuple]] = {
    "data": {
        "data_path": (path, "folder of the data set, or 'sample' for the embedded one"),
        "dataset": (str, "the published data set, or 'folder' for your own pictures and masks"),
        "base_size": (positive, "short side to which training images are scaled, times a random factor, in pixels"),
        "crop_size": (size, "height and width of the training crop, in pixels: one number, or HEIGHTxWIDTH"),
        "min_scale": (amount, "smallest random factor of the training scale"),
        "max_scale": (amount, "largest random factor of the training scale"),
        "cat_max_ratio": (
            amount,
            "redraw a training crop while one class covers this share of it or more (1: accept any crop)",
        ),
        "image_size": (positive, "height and width to which every image is resized, in pixels"),
        "augment": (bool, "the recipe's augmentation; off: only scaling to --base_size and random cropping"),
        "flip_vertical": (bool, "flip half of the training pictures vertically: for aerial or microscope pictures"),
        "rotate": (amount, "rotate training pictures at random, by up to this many degrees to either side"),
        "augmentation_prob": (probability, "share of the training images that are augmented"),
        "mask_resize": (("nearest", "bilinear"), "how training masks are resized; bilinear gives soft edges"),
        "eval_protocol": (("whole", "center_crop"), "score whole images at their own size, or centre crops"),
        "exif": (
            ("turn", "ignore"),
            "rotate pictures as EXIF says, or ignore it, whichever matches the labels; default: refuse such pictures",
        ),
        "check_data": (bool, "open every label file before training and refuse values that are not in the label table"),
        "skip_bad": (count, "how many unreadable training samples may be replaced; they are listed at the end"),
        "workers": (workers, "data loading processes per device; 'auto' divides the CPU cores"),
        "cache": (path, "folder for decoded pictures; filled in the first epoch, so that later epochs decode nothing"),
        "cache_share": (float, "share of the pictures to cache, if the disk has no room for all"),
    },
    "model": {
        "arch": (str, "the network of this folder"),
        "backbone": (str, "the encoder"),
        "base_channels": (channels, "channels of the first level or stage, 64 in the paper; all others in proportion"),
        "t": (count, "recurrences of a recurrent block"),
        "sync_bn": (bool, "batch norm over the images of all devices"),
        "pretrained": (path, "ImageNet weights: a file, a folder that holds the published file, or 'none'"),
        "load_from": (path, "initialise from the weights of a checkpoint, ours or the reference's"),
        "freeze": (frozen, "what to freeze: backbone, bn (all batch norms), backbone,bn or none"),
        "new_head": (bool, "with --load_from: all but the classifiers, which start at random: for new classes"),
        "label_resize": (
            ("aligned", "nearest", "bilinear"),
            "how the loss resizes labels to the logits; nearest and bilinear: as other code does",
        ),
        "avg_non_ignore": (bool, "average the loss over the labelled pixels instead of all pixels"),
        "loss": (
            loss,
            "loss of each output: ce (the recipe's), ohem, focal, dice, lovasz, or a sum such as ce:1,dice:0.5",
        ),
        "class_weights": (
            path,
            "class weights in ce, ohem and focal: 'auto' (from the training labels, rare classes weigh more), or a "
            "JSON file {name: weight}",
        ),
        "label_smoothing": (share, "in ce and ohem: share of the target that is spread evenly over all classes"),
    },
    "schedule": {
        "epochs": (positive, "length of training, in epochs"),
        "total_steps": (positive, "length of training, in optimizer steps (--epochs gives it in epochs)"),
        "max_steps": (steps, "stop after this many optimizer steps, without changing the schedule (0: at its end)"),
        "device_batch_size": (positive, "training images per device and step"),
        "total_batch_size": (positive, "training images per step over all devices (instead of --device_batch_size)"),
        "accumulate": (positive, "accumulate gradients over this many batches per step: when memory is short"),
        "eval_batch_size": (positive, "validation images per device at a time"),
        "schedule": (("cosine_epoch", "poly"), "how the learning rate decays"),
        "warmup_epochs": (count, "warm-up: epochs over which the learning rate rises"),
        "warmup_steps": (count, "warm-up: steps over which the learning rate rises"),
        "warmup_factor": (probability, "factor of the learning rate at the first warm-up step"),
        "decay_epochs": (count, "number of final epochs over which the learning rate falls linearly"),
    },
    "optimizer": {
        "optimizer": (("sgd", "adam", "adamw"), "the optimizer; the learning rates of a recipe are for its own one"),
        "lr": (amount, "initial learning rate"),
        "min_lr": (amount, "learning rate at the end of the schedule"),
        "scale_lr": (bool, "multiply --lr by the number of devices"),
        "encoder_lr_factor": (amount, "learning rate of the pretrained encoder, relative to --lr"),
        "head_lr_factor": (amount, "learning rate of the layers that are not pretrained, relative to --lr"),
        "momentum": (share, "momentum of SGD; beta1 of Adam and AdamW"),
        "beta1": (share, "Adam and AdamW: decay of the mean of gradients; SGD: momentum"),
        "beta2": (share, "Adam and AdamW: decay of the mean of squared gradients"),
        "weight_decay": (amount, "L2 penalty on all weights; decoupled with AdamW"),
        "norm_decay": (bool, "apply weight decay also to biases and to scale and shift of norms"),
        "ema": (
            share,
            "decay of an exponential moving average of the weights, which is scored and saved as best.pt (0: off)",
        ),
        "clip_norm": (amount, "clip the global norm of the gradients to this value (0: off)"),
    },
    "precision": {
        "amp": (bool, "mixed precision; default: on for NPU and CUDA, off on the CPU"),
        "precision_mode": (
            ("allow_mix_precision", "allow_fp32_to_fp16", "must_keep_origin_dtype"),
            "must_keep_origin_dtype: no mixed precision, and an NPU keeps float32 operators in float32; "
            "allow_fp32_to_fp16: it may compute them in float16; allow_mix_precision: --amp decides",
        ),
        "opt_level": (
            ("O0", "O1", "O2"),
            "with --amp: float32, autocast, or half-precision weights with float32 master weights",
        ),
        "amp_dtype": (("fp16", "bf16"), "half precision type"),
        "loss_scale": (loss_scale, "'dynamic' (or -1), or a fixed number; for fp16"),
        "hf32": (bool, "HF32 on NPU or TF32 on CUDA for float32 products; default: the device's own default"),
        "fused_optimizer": (
            ("torch", "torch_npu", "apex", "off"),
            "fused optimizer to use: torch; torch_npu on an NPU; apex for SGD on CUDA; off: operator by operator",
        ),
    },
    "devices": {
        "device": (
            ("auto", "npu", "cuda", "gpu", "cpu"),
            "device to run on; auto prefers an NPU, then CUDA, then the CPU",
        ),
        "devices": (positive, "number of devices (processes) on this machine"),
        "device_list": (device_list, "devices to use, by number: 0,1,2,3"),
        "distributed": (as_number, "1: all devices of the machine, 0: one device"),
        "nnodes": (positive, "number of machines"),
        "node_rank": (count, "index of this machine, from 0"),
        "master_addr": (str, "address of machine 0"),
        "master_port": (port, "free port of machine 0"),
        "local_addr": (str, "address of this machine, if torchrun picks one that the others cannot reach"),
        "dist_timeout": (wait, "seconds after which a run of several processes ends if one does not respond"),
        "max_restarts": (count, "how often to restart the processes when one has failed; they continue the run"),
        "local_rank": (int, "accepted for old launchers and ignored; LOCAL_RANK in the environment is used"),
        "seed": (seed, "seed of shuffling, augmentation and initial weights"),
        "seeds": (positive, "number of runs with --seed, --seed + 1, ..., one after the other, and their spread"),
        "deterministic": (bool, "use deterministic operators only (slower)"),
        "channels_last": (
            bool,
            "channels_last memory layout for images and features; default: on for CPU and CUDA, off for NPU",
        ),
        "checkpoint_activations": (bool, "recompute features in the backward pass: less memory, slower steps"),
        "compile": (bool, "compile the blocks of the network for training (torch.compile)"),
        "cuda_graph": (bool, "record the network's kernels once and replay them in each step; on one CUDA device"),
    },
    "evaluation": {
        "evaluate": (bool, "evaluate --checkpoint on the validation set instead of training"),
        "checkpoint": (path, "weights to evaluate with --evaluate, ours or the reference's"),
        "validate": (bool, "evaluate during training"),
        "train_split": (("train", "trainval"), "split to train on; trainval: also the val pictures"),
        "eval_split": (("valid", "test"), "split to evaluate with --evaluate"),
        "window": (size, "evaluate with sliding windows of this size, in pixels: one number, or HEIGHTxWIDTH"),
        "stride": (
            size,
            "step between windows, in pixels: one number, or DOWNxRIGHT; default: two thirds of the window",
        ),
        "scales": (factors, "evaluate at several scales and average the probabilities: factors such as 0.75,1,1.25"),
        "flip": (bool, "also evaluate each picture mirrored, and average the probabilities"),
        "submission": (path, "with --evaluate: folder for predictions in the format of the benchmark server"),
        "best_by": (str, "score, or class (by its IoU), that decides which weights are best; default: the first score"),
        "stop_after": (count, "end training after this many evaluations without improvement (0: never)"),
        "eval_every_epochs": (positive, "epochs between evaluations, each with a checkpoint"),
        "eval_every_steps": (positive, "steps between evaluations, each with a checkpoint"),
        "eval_each_epoch_from": (amount, "evaluate after every epoch from this share of training on"),
    },
    "run": {
        "output_dir": (path, "folder of the run; default: in the model's folder"),
        "config": (
            path,
            "take values from the config.json of an earlier run or a JSON file {flag: value}; the command line "
            "overrides the file, the file overrides the preset",
        ),
        "resume": (path, "continue from a checkpoint; 'auto': the newest intact one in --output_dir, if any"),
        "resume_anyway": (
            bool,
            "continue even if data, seed, schedule or optimizer differ from those of the checkpoint",
        ),
        "keep": (positive, "how many of the latest checkpoints to keep: last.pt, and older ones as last-STEP.pt"),
        "save_every_minutes": (amount, "minutes between additional checkpoints (0: none)"),
        "save_every_steps": (count, "steps between additional checkpoints (0: none)"),
        "save_every_epochs": (count, "epochs between additional checkpoints (0: none)"),
        "max_minutes": (amount, "save and end cleanly after this many minutes, with exit code 3 (0: never)"),
        "log_every_steps": (positive, "steps between log lines"),
        "dry_run": (
            bool,
            "print every value with its origin, count the data, measure memory and time of a few steps, and end; "
            "nothing is kept",
        ),
        "prof": (
            bool,
            "profile --prof_steps steps after the first 20, write output.prof to the output folder, and end",
        ),
        "prof_test": (bool, "the same after the first 5 steps"),
        "prof_steps": (positive, "number of steps that --prof and --prof_test profile"),
    },
}
# What no paper decides: every folder's presets begin with these.
RUN: dict[str, object] = {
    "workers": "auto",
    "cache": "",
    "cache_share": 1.0,
    "exif": None,  # such pictures are refused
    "skip_bad": 0,
    "load_from": "",
    "new_head": False,
    "freeze": "none",
    "best_by": "",
    "stop_after": 0,
    "accumulate": 1,
    "clip_norm": 0.0,
    "ema": 0.0,
    "norm_decay": True,
    "loss": "ce",
    "class_weights": "",
    "label_smoothing": 0.0,
    "max_steps": 0,
    "sync_bn": False,
    "amp": None,  # on for NPU and CUDA, off on the CPU
    "opt_level": "O1",
    "amp_dtype": "fp16",
    "loss_scale": "dynamic",
    "precision_mode": None,
    "hf32": None,
    "fused_optimizer": "torch",
    "device": "auto",
    "devices": 1,
    "device_list": None,
    "distributed": None,
    "nnodes": 1,
    "node_rank": 0,
    "master_addr": "127.0.0.1",
    "master_port": 29688,
    "local_addr": "",
    "dist_timeout": 1800.0,  # a process may be writing gigabytes of checkpoints to a slow disk
    "max_restarts": 0,
    "local_rank": None,
    "seed": 0,
    "seeds": 1,
    "deterministic": False,
    "channels_last": None,  # on for CPU and CUDA; an NPU has no kernels for it
    "checkpoint_activations": False,
    "compile": False,
    "cuda_graph": False,
    "evaluate": False,
    "checkpoint": "",
    "validate": True,
    "window": None,  # whole pictures
    "stride": None,
    "scales": [1.0],
    "flip": False,
    "submission": "",
    "output_dir": None,
    "config": "",
    "resume": "",
    "resume_anyway": False,
    "keep": 2,
    "save_every_minutes": 10,
    "save_every_steps": 0,
    "max_minutes": 0.0,
    "log_every_steps": 10,
    "dry_run": False,
    "prof": False,
    "prof_test": False,
    "prof_steps": 1,
}
# And those of folders that train on crops.
CROPS: dict[str, object] = {
    "augment": True,
    "flip_vertical": False,
    "rotate": 0.0,
    "train_split": "train",
    "eval_split": "val",
}
EVAL_SPLITS = ["val", "train", "test"]  # of these folders; the labels of test are not published
# The same for spellings that several of the originals have.
RUN_ALIASES = {
    "data": "data_path",
    "num_workers": "workers",
    "worker": "workers",
    "batch_size": "device_batch_size",
    "work_dir": "output_dir",
    "save_dir": "output_dir",
    "resume_from": "resume",
    "multiprocessing_distributed": "distributed",
    "is_distributed": "distributed",
    "gpus": "devices",
    "gpu_ids": "device_list",
    "device_id": "device_list",
    "addr": "master_addr",
    "port": "master_port",
    "apex": "amp",
    "apex_opt_level": "opt_level",
    "loss_scale_value": "loss_scale",
    "fp32": {"amp": False, "hf32": False},
}
# Flags of the originals that do not exist here -> what to do instead.
OTHERWISE_NOW = {
    "profiling": "use --prof or --prof_test, and --prof_steps",
    "start_step": "--prof profiles after 20 steps, --prof_test after 5",
    "stop_step": "--prof_steps says how many steps are profiled",
    "launcher": "leave it out; --devices, --nnodes and torchrun or srun start several processes",
    "options": "give each value as a flag of its own, or several in a JSON file with --config",
    "cfg_options": "give each value as a flag of its own, or several in a JSON file with --config",
    "bin_mode": "leave it out; operators are compiled as the chip needs them",
    "auto_resume": "use --resume auto",
    "gpu_id": "use --device_list",
}
# Pairs of which a command line gives one: the same number in two units.
EITHER_OR = (
    ("epochs", "total_steps"),
    ("warmup_epochs", "warmup_steps"),
    ("device_batch_size", "total_batch_size"),
)
# A path in a preset starts in the model's folder; one on the command line where the user is.
PATHS = {"data_path", "cache", "pretrained", "load_from", "checkpoint", "submission", "output_dir"}

# Of the values of a run, those that are no flags but tell of them: which stood on the command line, where others came
# from when the preset does not say so (`common.recipe`); `started` is of earlier versions.
ABOUT_VALUES = {"preset", "given", "origins", "started"}
# What may differ between the processes of one run: where they are, and how each of them reads.
OF_ONE_PROCESS = PATHS | {
    "config", "resume", "workers", "cache_share", "check_data", "device", "devices", "device_list", "distributed",
    "nnodes", "node_rank", "master_addr", "master_port", "local_addr", "local_rank",
    "max_restarts",
}  # fmt: skip
