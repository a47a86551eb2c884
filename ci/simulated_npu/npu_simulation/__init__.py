"""A device `npu` made of the CPU's memory and operators, as picky as an Ascend NPU: for the tests alone.

Its folder on PYTHONPATH is all it takes, for any script:

    PYTHONPATH=ci/simulated_npu bash ICNet/test/train_full_1p.sh --device npu --data_path sample

`import torch_npu` then finds a stand-in for the plugin, which makes the device; torch loads it by itself, as it does
the real one, unless TORCH_DEVICE_BACKEND_AUTOLOAD is 0. Worker processes and those that torchrun starts have it too.
Operators, autocast, collectives (`hccl`) and the plugin's functions work; kernels, speed and random numbers are the
CPU's. What an NPU refuses is an error here (`rules`), the order of streams is checked (`streams`), and what would make
the host wait is counted (`counters`). Every tensor is on npu:0, whatever device a process has chosen.

Environment variables: SIMULATED_NPU_DEVICES, the number of devices (8); SIMULATED_NPU_SOC, the chip (Ascend910B3;
others in `rules.SOCS`). Needs torch 2.13 or later: older ones cannot define a device in Python.
"""
