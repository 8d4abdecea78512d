# It needs torch, which the tests do without.
collect_ignore = ["make_torchvision.py"]
