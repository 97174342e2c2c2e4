"""ONLINE: an exported model over HTTP, without TensorFlow, Keras, Prefect or DVC."""
