"""How the small LLaVA that the repository ships was trained: a pool of scenes, the tower, then the decoder."""
