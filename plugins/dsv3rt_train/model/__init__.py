"""The trainable form of the model: float32 master weights in the same slots the runtime fills."""
