"""显卡验收：python -m tests.gpu（见 docs/GPU.md）。"""
