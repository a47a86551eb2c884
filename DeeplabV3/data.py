"""Cityscapes as DeepLabV3 trains and evaluates on it."""

from common.data.cityscapes_sets import INFO, validation_images
from common.data.cityscapes_sets import distorted_datasets as build_datasets

__all__ = ["INFO", "build_datasets", "validation_images"]
