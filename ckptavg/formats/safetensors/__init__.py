"""safetensors files, single or in shards."""
