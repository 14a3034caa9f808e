"""What a user would pick instead: small programs that serve the same graph with the same noise, as told by PEER_*.

    PEER_GRAPH  elbo.onnx      PEER_NOISE  an npy file, (1, latent_size)      PEER_PORT  where to listen

All take POST /score: {"inputs": [...]} answered by {"elbo": [...]}, or little-endian rows as they lie in memory
answered by float64s. They validate less than we do, to their advantage. Each runs in an environment of its own.
"""
