"""The device that the engine's tests run on: the CPU, or CUDA if `CHATRPC_TEST_DEVICE` is `cuda`.

`tests/service/engine/test_simulated_cuda.py` runs tests of the engine on a simulated CUDA device.
On a machine with a GPU, `CHATRPC_TEST_DEVICE=cuda python -m pytest FILE` runs them there.
"""

import os

import torch

from service.domain.engine_settings import Device

DEVICE: Device = "cuda" if os.environ.get("CHATRPC_TEST_DEVICE") == "cuda" else "cpu"
TORCH_DEVICE = torch.device(DEVICE)
