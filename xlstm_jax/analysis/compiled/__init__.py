"""What a compiled program will do on its device, read from the program alone: its kernels with
their bytes and FLOPs (`kernels`), where they come from (`origin`), how long they should take
(`rates`), and the table of it all (`step_model`).
"""
