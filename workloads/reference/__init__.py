"""A small DeepSeek-V3 in NumPy that really computes, and counts what it does.

It imports nothing of the simulator, so that agreement between the two means something. Start with `config` and
`presets`, then `model` (stages), `count` (what is counted), `pipeline` (schedules executed), `expert_parallel` and
`traffic` (tokens between ranks), `fp8` and `precision`, `train`, `speculative`, `claims`.
"""
