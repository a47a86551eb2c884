"""What a run that is continued may do with each flag: a new flag of `common.flags` is in one of these sets."""

from common.flags import OF_ONE_PROCESS

# With other values of these it would be another run, which is refused without --resume_anyway; its length is compared
# in steps, and its data by what is in the files.
ANOTHER_RUN = {
    "dataset", "base_size", "crop_size", "min_scale", "max_scale", "cat_max_ratio", "image_size", "augmentation_prob",
    "mask_resize", "augment", "flip_vertical", "rotate", "exif", "arch", "backbone", "base_channels", "t",
    "label_resize", "avg_non_ignore", "freeze", "loss", "class_weights", "label_smoothing",
    "schedule", "warmup_epochs", "warmup_steps", "warmup_factor", "decay_epochs",
    "optimizer", "lr", "min_lr", "scale_lr", "encoder_lr_factor", "head_lr_factor", "momentum", "beta1", "beta2",
    "weight_decay", "norm_decay", "clip_norm", "ema", "best_by",
    "seed", "train_split",
}  # fmt: skip
# It may have other values of these, and says so.
CHANGES = {
    "eval_protocol", "sync_bn", "amp", "precision_mode", "opt_level", "amp_dtype", "loss_scale", "hf32",
    "fused_optimizer", "deterministic", "channels_last", "checkpoint_activations", "compile", "cuda_graph", "validate",
    "window", "stride", "scales", "flip",
}  # fmt: skip
# These are no difference: where it computes, reads and ends, what it began with, how often it reports and saves.
SAME_RUN = OF_ONE_PROCESS | {
    "epochs", "total_steps", "max_steps", "device_batch_size", "total_batch_size", "accumulate", "eval_batch_size",
    "evaluate", "new_head", "eval_split", "max_minutes", "seeds", "stop_after",
    "eval_every_epochs", "eval_every_steps", "eval_each_epoch_from",
    "resume_anyway", "skip_bad", "keep", "dist_timeout", "save_every_minutes", "save_every_steps", "save_every_epochs",
    "log_every_steps", "dry_run", "prof", "prof_test", "prof_steps",
}  # fmt: skip
