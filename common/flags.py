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
        "data_path": (path, "folder of the data set, or 'sample' for the embedded one, drawn on the spot"),
        "dataset": (
            str,
            "which data set --data_path is: the published one, or 'folder' for pictures and masks of your own",
        ),
        "base_size": (positive, "short side to which training images are scaled, times a random factor, in pixels"),
        "crop_size": (size, "height and width of the training crop, in pixels: one number, or HEIGHTxWIDTH"),
        "min_scale": (amount, "smallest random factor of the training scale"),
        "max_scale": (amount, "largest random factor of the training scale"),
        "cat_max_ratio": (
            amount,
            "a training crop is drawn anew while one class covers this share of it or more (1: any crop)",
        ),
        "image_size": (positive, "height and width to which every image is resized, in pixels"),
        "augment": (
            bool,
            "the recipe's augmentation; off: pictures at --base_size, cropped anywhere and else as they are",
        ),
        "flip_vertical": (bool, "turn half of the training pictures upside down: for views from above, microscopes"),
        "rotate": (amount, "turn training pictures by up to so many degrees to either side"),
        "augmentation_prob": (probability, "share of the training images that are augmented"),
        "mask_resize": (("nearest", "bilinear"), "how training masks are resized; bilinear gives soft edges"),
        "eval_protocol": (("whole", "center_crop"), "score whole images at their own size, or centre crops"),
        "exif": (
            ("turn", "ignore"),
            "turn pictures as EXIF says, or ignore it: whichever labels fit; without this such pictures are refused",
        ),
        "check_data": (bool, "open every label file before training and refuse values outside the label table"),
        "skip_bad": (
            count,
            "training samples that cannot be read and are replaced by others: so many, which are listed at the end",
        ),
        "workers": (workers, "processes that read data, for each device; 'auto' shares the cores out"),
        "cache": (path, "folder for decoded pictures, filled in the first epoch: later ones decode nothing"),
        "cache_share": (float, "share of the pictures that the cache keeps, for disks with room for a part"),
    },
    "model": {
        "arch": (str, "the network of this folder"),
        "backbone": (str, "the encoder"),
        "base_channels": (channels, "channels of the first level or stage, 64 in the paper; the others in proportion"),
        "t": (count, "recurrences of a recurrent block"),
        "sync_bn": (bool, "batch norm over the images of all devices"),
        "pretrained": (path, "ImageNet weights: a file, a folder that holds the published file, or 'none'"),
        "load_from": (path, "start from the weights of a checkpoint, ours or the reference's"),
        "freeze": (frozen, "what is not trained: backbone, bn (all batch norms), backbone,bn or none"),
        "new_head": (
            bool,
            "with --load_from: other weights than the classifiers', which begin at random: for new classes",
        ),
        "label_resize": (
            ("aligned", "nearest", "bilinear"),
            "how labels are brought to the size of the logits in the loss; nearest and bilinear: as other code does",
        ),
        "avg_non_ignore": (bool, "mean loss over the labelled pixels instead of over all pixels"),
        "loss": (
            loss,
            "what each pair of logits and labels is trained with: ce (the recipe's), ohem, focal, dice, lovasz, or a "
            "sum such as ce:1,dice:0.5",
        ),
        "class_weights": (
            path,
            "weights of the classes in ce, ohem and focal: 'auto', rare classes more by the training labels, or a JSON "
            "file of {name: weight}",
        ),
        "label_smoothing": (share, "in ce and ohem: the share of the truth that is dealt out to all classes alike"),
    },
    "schedule": {
        "epochs": (positive, "length of the training, in epochs"),
        "total_steps": (positive, "length of the training, in optimizer steps (--epochs gives it in epochs)"),
        "max_steps": (steps, "stop after so many optimizer steps of the schedule (0: at its end)"),
        "device_batch_size": (positive, "training images of one device in one step"),
        "total_batch_size": (positive, "training images of one step of all devices (for --device_batch_size)"),
        "accumulate": (
            positive,
            "add up the gradients of so many device batches for each optimizer step, where memory is short",
        ),
        "eval_batch_size": (positive, "validation images of one device at a time"),
        "schedule": (("cosine_epoch", "poly"), "how the learning rate falls"),
        "warmup_epochs": (count, "epochs in which the learning rate rises"),
        "warmup_steps": (count, "steps in which the learning rate rises"),
        "warmup_factor": (probability, "factor of the learning rate at the first of these steps"),
        "decay_epochs": (count, "last epochs, in which the learning rate falls in a line"),
    },
    "optimizer": {
        "optimizer": (("sgd", "adam", "adamw"), "which one; the published recipe's rates are for its own"),
        "lr": (amount, "initial learning rate"),
        "min_lr": (amount, "learning rate at the end of the schedule"),
        "scale_lr": (bool, "multiply --lr by the number of devices"),
        "encoder_lr_factor": (amount, "learning rate of the pretrained encoder, relative to --lr"),
        "head_lr_factor": (amount, "learning rate of the layers that are not pretrained, relative to --lr"),
        "momentum": (share, "momentum of SGD; beta1 of Adam and AdamW"),
        "beta1": (share, "decay of the mean of gradients in Adam and AdamW; momentum of SGD"),
        "beta2": (share, "decay of the mean of squared gradients in Adam and AdamW"),
        "weight_decay": (amount, "L2 penalty on all weights; with AdamW decoupled from the gradients"),
        "norm_decay": (bool, "the weight decay is also of biases and of the scales and shifts of norms"),
        "ema": (share, "decay of a moving average of the weights, which is scored and kept as best.pt (0: without)"),
        "clip_norm": (amount, "scale the gradients of a step down to this norm, of all of them together (0: never)"),
    },
    "precision": {
        "amp": (bool, "mixed precision; default: on for NPU and CUDA, off on the CPU"),
        "precision_mode": (
            ("allow_mix_precision", "allow_fp32_to_fp16", "must_keep_origin_dtype"),
            "must_keep_origin_dtype: no mixed precision, and an NPU keeps float32 operators in float32; "
            "allow_fp32_to_fp16: it may compute them in float16; allow_mix_precision: --amp decides",
        ),
        "opt_level": (("O0", "O1", "O2"), "with --amp: float32, autocast, or half weights with float32 masters"),
        "amp_dtype": (("fp16", "bf16"), "the half precision"),
        "loss_scale": (loss_scale, "'dynamic' (or -1), or a fixed number; for fp16"),
        "hf32": (
            bool,
            "HF32 on NPU, TF32 on CUDA for float32 products; default: as the device does by itself",
        ),
        "fused_optimizer": (
            ("torch", "torch_npu", "apex", "off"),
            "whose one-pass optimizer: torch; torch_npu on an NPU; apex for SGD on CUDA; off: operator by operator",
        ),
    },
    "devices": {
        "device": (("auto", "npu", "cuda", "gpu", "cpu"), "where to run; auto takes an NPU, then CUDA, then the CPU"),
        "devices": (positive, "how many devices (processes) on this machine"),
        "device_list": (device_list, "which devices, as numbers: 0,1,2,3"),
        "distributed": (as_number, "1: all devices of the machine, 0: one device"),
        "nnodes": (positive, "number of machines"),
        "node_rank": (count, "number of this machine, from 0"),
        "master_addr": (str, "address of machine 0"),
        "master_port": (port, "free port of machine 0"),
        "local_addr": (str, "address of this machine, where the one that torchrun finds by itself is not reachable"),
        "dist_timeout": (wait, "seconds after which a run of several processes ends when one does not answer"),
        "max_restarts": (count, "how often processes are started anew when one has failed; they continue the run"),
        "local_rank": (int, "given by old launchers, which set LOCAL_RANK too: that is what counts"),
        "seed": (seed, "seed of the shuffling, the augmentation and the initial weights"),
        "seeds": (positive, "runs of the recipe with --seed, --seed + 1, ..., one after the other, and their spread"),
        "deterministic": (bool, "repeatable operators only (slower)"),
        "channels_last": (
            bool,
            "images and features with the channels of a pixel side by side; default: on for CPU and CUDA, off for NPU",
        ),
        "checkpoint_activations": (bool, "compute features again for the gradients: less memory, slower steps"),
        "compile": (bool, "compile the blocks of the network for training (torch.compile)"),
        "cuda_graph": (bool, "record the network's kernels and replay them in each step; for one CUDA device"),
    },
    "evaluation": {
        "evaluate": (bool, "score --checkpoint on the validation set and train nothing"),
        "checkpoint": (path, "the weights to score with --evaluate, ours or the reference's"),
        "validate": (bool, "evaluate during training"),
        "train_split": (("train", "trainval"), "the split to train on; trainval: the pictures of val too"),
        "eval_split": (("valid", "test"), "the split that --evaluate scores"),
        "window": (size, "evaluate by overlapping windows of this size, in pixels: one number, or HEIGHTxWIDTH"),
        "stride": (size, "from one window to the next, in pixels: one number, or DOWNxRIGHT; default: two thirds"),
        "scales": (factors, "evaluate at several sizes and average the probabilities: factors such as 0.75,1,1.25"),
        "flip": (bool, "evaluate each picture also mirrored, and average the probabilities"),
        "submission": (
            path,
            "with --evaluate: a folder for the predictions, in the form that the data set's server takes",
        ),
        "best_by": (str, "the score, or the class by its IoU, that decides which weights are best; default: the first"),
        "stop_after": (count, "end a training after so many evaluations without a better score (0: never)"),
        "eval_every_epochs": (positive, "epochs between two evaluations and checkpoints"),
        "eval_every_steps": (positive, "steps between two evaluations and checkpoints"),
        "eval_each_epoch_from": (amount, "from this share of the training on, evaluate after every epoch"),
    },
    "run": {
        "output_dir": (path, "folder of the run, in the model's folder unless it is given"),
        "config": (
            path,
            "take the values of an earlier run from its config.json, or from a JSON file of {flag: value}; the command "
            "line wins over it, and it over the preset",
        ),
        "resume": (
            path,
            "continue from a checkpoints/last.pt; 'auto': from the newest one of --output_dir that is whole, if any",
        ),
        "resume_anyway": (bool, "continue also with other data, seed, schedule or optimizer than the checkpoint is of"),
        "keep": (positive, "how many of its last checkpoints a run keeps: last.pt, and older ones as last-STEP.pt"),
        "save_every_minutes": (amount, "additional checkpoints, every so many minutes (0: none by the clock)"),
        "save_every_steps": (count, "additional checkpoints, every so many steps (0: with the evaluations only)"),
        "save_every_epochs": (count, "additional checkpoints, every so many epochs (0: with the evaluations only)"),
        "max_minutes": (amount, "save and end in order after so many minutes, with exit code 3 (0: never)"),
        "log_every_steps": (positive, "steps between two log lines"),
        "dry_run": (
            bool,
            "print the recipe with where each value comes from, count the data, measure memory and time of a few "
            "steps, and end; nothing of it is kept",
        ),
        "prof": (bool, "after 20 steps, profile --prof_steps steps into output.prof of the output folder, and end"),
        "prof_test": (bool, "the same after 5 steps"),
        "prof_steps": (positive, "how many steps --prof and --prof_test profile"),
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
