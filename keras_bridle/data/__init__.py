"""Files to `tf.data` pipelines."""
