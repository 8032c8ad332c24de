"""What training asks of the multimodal language model alone: building it, its data, LoRA, recomputation."""
