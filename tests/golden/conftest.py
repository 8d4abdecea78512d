# It needs torch, which the tests do without.
collect_ignore = ["compare_predictions.py", "make_detectron2.py", "make_torchvision.py"]
