"""Write the tables of presets and of flags into both READMEs of model folders: python ci/flag_tables.py [MODEL ...]

Without a name it does so in all of them. The rows come from the folder's presets and from `common.flags.FLAGS`;
ci/tests/test_docs.py compares them again. Run it after a flag, a value of a preset or a spelling has changed.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.args import format_setting, format_value  # noqa: E402  the line above makes it importable
from common.flags import FLAGS  # noqa: E402  as above

# What FLAGS says of each flag, in Chinese.
CHINESE = {
    "data_path": "数据集目录；`sample` 表示当场绘制的内置样例",
    "dataset": "`--data_path` 是哪个数据集：公开的那一个，或 `folder`（自己的图片和掩码）",
    "augment": "原方案的数据增强；关闭时只把图片按 `--base_size` 缩放并随机裁剪",
    "flip_vertical": "将一半训练图片上下翻转：适用于俯视图、显微图像",
    "rotate": "训练图片随机旋转的最大角度（两个方向），单位度",
    "new_head": "与 `--load_from` 合用：加载分类器以外的权重，分类器随机初始化，用于新的类别",
    "base_size": "训练图片缩放后的短边长度（再乘以一个随机系数），单位像素",
    "crop_size": "训练裁剪的高和宽，单位像素：一个数，或 `高x宽`",
    "min_scale": "训练缩放的最小随机系数",
    "max_scale": "训练缩放的最大随机系数",
    "exif": "EXIF 要求旋转的图片：`turn` 旋转，`ignore` 不旋转，取决于标签与哪一种对齐；未给出时拒绝这样的图片",
    "skip_bad": "最多允许多少个无法读取的训练样本由其他样本代替，结束时列出",
    "check_data": "训练前打开每个标签文件，拒绝标签表之外的值",
    "workers": "每个设备的数据读取进程数；`auto` 平分 CPU 核",
    "arch": "本目录的网络",
    "backbone": "骨干网络（编码器）",
    "pretrained": "ImageNet 权重：文件、存放公开权重文件的目录，或 `none`",
    "load_from": "从某个检查点的权重开始训练，本仓库或参考实现的均可",
    "label_resize": "计算损失时，标签以何种方式缩放到 logits 的尺寸；`nearest` 和 `bilinear` 与其他代码相同",
    "epochs": "训练长度，以 epoch 计",
    "loss": "每一对 logits 和标签的损失：`ce`（原方案的）、`ohem`、`focal`、`dice`、`lovasz`，"
    "或 `ce:1,dice:0.5` 这样的和",
    "class_weights": "`ce`、`ohem`、`focal` 中各类别的权重：`auto`（按训练标签，少见的类别更大），"
    "或 {名称: 权重} 的 JSON 文件",
    "label_smoothing": "标签平滑（`ce` 和 `ohem`）：真值中平均分给所有类别的比例",
    "max_steps": "执行学习率调度的多少步后停止（0：到调度结束）",
    "device_batch_size": "每个设备每步的训练图片数",
    "accumulate": "梯度累积：每个优化步累积多少个批次的梯度，用于显存不足时",
    "eval_batch_size": "每个设备每次评测的图片数",
    "schedule": "学习率的下降方式",
    "warmup_epochs": "学习率预热的 epoch 数",
    "optimizer": "优化器；训练配置中的学习率是按其原来的优化器设定的",
    "lr": "初始学习率",
    "head_lr_factor": "未预训练的层的学习率，相对于 `--lr` 的倍数",
    "momentum": "SGD 的动量；Adam 和 AdamW 中为 beta1",
    "weight_decay": "权重衰减（L2 惩罚），作用于全部权重；AdamW 中与梯度解耦",
    "clip_norm": "梯度裁剪：全部梯度的总范数上限（0：不裁剪）",
    "norm_decay": "对偏置以及归一化层的缩放和平移参数也做权重衰减",
    "checkpoint_activations": "激活重计算：反向传播时重新计算特征，占用显存更少，每步更慢",
    "ema": "权重指数滑动平均（EMA）的衰减系数，评测并保存为 `best.pt` 的是平均后的权重（0：不用）",
    "freeze": "冻结（不训练）的部分：`backbone`、`bn`（全部批归一化）、`backbone,bn` 或 `none`",
    "amp": "混合精度；默认在 NPU 和 CUDA 上开启，在 CPU 上关闭",
    "opt_level": "配合 `--amp`：float32、autocast，或半精度权重加 float32 主权重",
    "amp_dtype": "半精度的类型",
    "loss_scale": "`dynamic`（或 -1），或一个固定数值；用于 fp16",
    "device": "在哪种设备上运行；`auto` 依次尝试 NPU、CUDA、CPU",
    "devices": "本机使用多少个设备（进程）",
    "device_list": "使用哪些设备，以编号指定：0,1,2,3",
    "distributed": "1：本机全部设备，0：一个设备",
    "nnodes": "机器数",
    "node_rank": "本机的编号，从 0 开始",
    "master_addr": "0 号机器的地址",
    "master_port": "0 号机器上的空闲端口",
    "seed": "打乱顺序、数据增强和初始权重的随机种子",
    "seeds": "以 `--seed`、`--seed` + 1……依次运行多少次，并给出得分的离散程度",
    "deterministic": "只用确定性算子，结果可复现（较慢）",
    "channels_last": "图像和特征采用 channels_last 内存布局；默认在 CPU 和 CUDA 上开启，在 NPU 上关闭",
    "compile": "训练时编译网络的各个模块（torch.compile）",
    "cuda_graph": "把网络的算子录制一次，每步重放；仅用于单个 CUDA 设备",
    "evaluate": "在验证集上评测 `--checkpoint`，不训练",
    "checkpoint": "`--evaluate` 要评测的权重，本仓库或参考实现的均可",
    "validate": "训练期间进行评测",
    "best_by": "按哪个得分（或哪个类别的 IoU）选出最佳权重；默认：第一个得分",
    "stop_after": "早停：连续多少次评测得分没有提高即结束训练（0：不早停）",
    "eval_every_epochs": "每隔多少个 epoch 评测并保存一次检查点",
    "eval_each_epoch_from": "训练进行到这一比例之后，每个 epoch 都评测",
    "output_dir": "本次运行的目录；未给出时在模型目录下",
    "dry_run": "打印每个值及其来源，统计数据，用几个训练步测量内存和时间，然后结束；不留下任何文件",
    "config": "从以前某次运行的 `config.json` 或 {参数: 值} 的 JSON 文件取值；命令行优先于它，它优先于预设",
    "resume": "从某个 `checkpoints/last.pt` 续训；`auto` 取 `--output_dir` 中最新且完好的那个（如果有）",
    "resume_anyway": "即使数据、随机种子、学习率调度或优化器的数值与检查点的不同，也继续训练",
    "keep": "一次运行保留最近的多少个检查点：`last.pt`，以及更早的 `last-STEP.pt`",
    "save_every_minutes": "额外保存检查点的间隔分钟数（0：不按时间保存）",
    "save_every_epochs": "每隔多少个 epoch 额外保存一次检查点（0：只随评测保存）",
    "save_every_steps": "每隔多少步额外保存一次检查点（0：只随评测保存）",
    "max_minutes": "多少分钟之后保存检查点并正常结束，退出码为 3（0：不限）",
    "log_every_steps": "两行日志之间的步数",
    "cat_max_ratio": "一个类别在裁剪区域中的占比达到此值时重新裁剪（1：任意裁剪）",
    "image_size": "所有图片缩放后的高和宽，单位像素",
    "augmentation_prob": "做数据增强的训练图片比例",
    "mask_resize": "训练掩码的缩放方式；`bilinear` 会产生软边缘",
    "eval_protocol": "评测原尺寸的整幅图像，或评测中心裁剪",
    "eval_split": "`--evaluate` 评测哪个划分",
    "train_split": "训练用的划分；`trainval`：连同 val 的图片",
    "window": "以这个尺寸的滑动窗口评测，单位像素：一个数，或 `高x宽`",
    "stride": "相邻窗口之间的距离，单位像素：一个数，或 `向下x向右`；默认为窗口的三分之二",
    "scales": "以多个尺寸评测并对概率取平均：系数，例如 0.75,1,1.25",
    "flip": "同时评测每张图片的水平翻转，并对概率取平均",
    "submission": "与 `--evaluate` 合用：存放预测结果的目录，格式为该数据集评测服务器所接受的格式",
    "base_channels": "第一层（ResNet 为第一阶段）的通道数；其余各层按比例变化，公开的网络为 64",
    "t": "循环卷积块的循环次数",
    "sync_bn": "同步批归一化：用所有设备上的图片计算统计量",
    "avg_non_ignore": "损失只对有标注的像素取平均，而不是对全部像素",
    "total_steps": "训练长度，以优化步计（`--epochs` 以 epoch 计）",
    "total_batch_size": "所有设备每步的训练图片总数（代替 `--device_batch_size`）",
    "warmup_steps": "学习率预热的步数",
    "warmup_factor": "预热第一步的学习率系数",
    "decay_epochs": "最后多少个 epoch 中学习率线性下降",
    "min_lr": "学习率调度结束时的学习率",
    "scale_lr": "把 `--lr` 乘以设备数",
    "encoder_lr_factor": "预训练编码器的学习率，相对于 `--lr` 的倍数",
    "beta1": "Adam 和 AdamW 中梯度均值的衰减系数；SGD 中为动量",
    "beta2": "Adam 和 AdamW 中梯度平方均值的衰减系数",
    "hf32": "在 NPU 上用 HF32、在 CUDA 上用 TF32 计算 float32 乘积；默认由设备自行决定",
    "precision_mode": (
        "`must_keep_origin_dtype`：不用混合精度，NPU 的 float32 算子保持 float32；"
        "`allow_fp32_to_fp16`：允许 NPU 以 float16 计算它们；`allow_mix_precision`：由 `--amp` 决定"
    ),
    "fused_optimizer": "融合优化器的来源：`torch`；`torch_npu` 用于 NPU；`apex` 用于 CUDA 上的 SGD；`off`：逐个算子",
    "local_rank": "为旧启动器保留，会被忽略；使用环境变量 `LOCAL_RANK`",
    "dist_timeout": "多进程训练中，某个进程在多少秒内没有应答即结束训练",
    "max_restarts": "进程失败后最多重新启动的次数；重新启动的进程接着训练",
    "local_addr": "本机的地址；torchrun 自动找到的地址无法从其他机器访问时才需要",
    "eval_every_steps": "每隔多少步评测并保存一次检查点",
    "cache": "存放已解码图片的目录，在第一个 epoch 中写入：之后不再解码",
    "cache_share": "缓存所保留的图片比例，用于只放得下一部分的磁盘",
    "prof": "训练 20 步后对 `--prof_steps` 步做性能分析，结果写入输出目录的 `output.prof`，然后结束",
    "prof_test": "同上，但在 5 步之后开始",
    "prof_steps": "`--prof` 和 `--prof_test` 分析多少步",
}


def table(presets, meanings: dict[str, str]) -> list[str]:
    """The rows of one folder: flag, spellings, default, meaning."""
    default = next(iter(presets.PRESETS.values()))
    rows = []
    for name in [name for flags in FLAGS.values() for name in flags if name in default]:
        spellings = [
            f"`--{spelling}`" if meaning == name else f"`--{spelling}` (`{format_setting(meaning)}`)"
            for spelling, meaning in presets.ALIASES.items()
            if meaning == name or (isinstance(meaning, dict) and next(iter(meaning)) == name)
        ]
        value = shown(default[name] or "output/<preset>") if name == "output_dir" else shown(default[name])
        rows.append(f"| `--{name}` | {', '.join(spellings)} | {value} | {meanings[name]} |")
    return rows


# Presets that are nobody's recipe, and what differs between recipes without being a part of them.
NO_RECIPES = {"quickstart", "own", "tiny", "eval_1p", "eval_8p"}
NOT_OF_A_RECIPE = {"output_dir", "checkpoint", "master_port"}
# shown also where all presets have the same
ALWAYS = {"epochs", "total_steps", "device_batch_size", "lr", "scale_lr", "weight_decay"}


def preset_table(presets, titles: tuple[str, str]) -> list[str]:
    """The recipes side by side: the values in which they differ, those in ALWAYS, and the images of one step.

    titles: what the first column, and the row of images, are called.
    """
    recipes = {name: values for name, values in presets.PRESETS.items() if name not in NO_RECIPES}
    default = next(iter(recipes.values()))
    flags = [name for topic in FLAGS.values() for name in topic if name in default and name not in NOT_OF_A_RECIPE]
    columns = {name: [shown(values[name]) for values in recipes.values()] for name in flags}
    images = [
        str(values["nnodes"] * values["devices"] * values["device_batch_size"] * values["accumulate"])
        for values in recipes.values()
    ]
    rows = [
        (f"`{name}`", cells)
        for name, cells in columns.items()
        if len(set(cells)) > 1 or (name in ALWAYS and any(cells))
    ]
    head = [(titles[0], [f"`{name}`" for name in recipes]), ("---", ["---"] * len(recipes))]
    return [f"| {' | '.join([first, *cells])} |" for first, cells in [*head, *rows, (titles[1], images)]]


def shown(value) -> str:
    """A default as the table has it: nothing for a flag without one, on or off for a switch."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{format_value(value)}`"


def main(folders: list[str]) -> None:
    english = {name: text for flags in FLAGS.values() for name, (_, text) in flags.items()}
    for folder in folders or sorted(path.parent.name for path in ROOT.glob("*/train.py")):
        presets = importlib.import_module(f"{folder}.presets")
        for document, meanings, titles in (
            ("README.md", english, ("preset", "images of a step")),
            ("README.zh.md", CHINESE, ("预设", "每步图片数")),
        ):
            path = ROOT / folder / document
            lines = path.read_text(encoding="utf-8").splitlines()
            old = [number for number, line in enumerate(lines) if line.startswith("| `--")]
            if not old or old != list(range(old[0], old[-1] + 1)):
                sys.exit(f"{path} must hold one table whose rows begin with '| `--', to be replaced")
            lines[old[0] : old[-1] + 1] = table(presets, meanings)
            first = next((number for number, line in enumerate(lines) if line.startswith(f"| {titles[0]} |")), None)
            if first is None:
                sys.exit(f"{path} must hold one table whose first line begins with '| {titles[0]} |', to be replaced")
            last = lines.index("", first)
            lines[first:last] = preset_table(presets, titles)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
