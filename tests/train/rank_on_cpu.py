"""llava.train.rank where DeepSpeed's launcher names its rank a GPU, also on a machine that has none or hides them."""

import os
import runpy

os.environ["CUDA_VISIBLE_DEVICES"] = ""
runpy.run_module("llava.train.rank", run_name="__main__")
