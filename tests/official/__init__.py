"""What the authors' own code keeps, recorded, and whether the engine keeps the same.

`python -m tests.official` compares, `python -m tests.official.record FOLDER` records anew: FOLDER has a clone (or bare
repository) of each method's code under the name that `fixtures.json` gives. Both make their inputs by seed with NumPy.
"""
