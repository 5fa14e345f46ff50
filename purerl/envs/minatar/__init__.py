"""The games of MinAtar (Young and Tian 2019) as pure environments."""
