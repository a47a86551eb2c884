"""Checks that every name of torch_npu that the sources use is in the real plugin, without an NPU and without CANN.

python -m ci.torch_npu_names prints each name, where it is used, and what three releases of the plugin say of it. One is
imported, on stub libraries in place of CANN's; the others are read. The simulated NPU of the tests is never asked.
"""
