"""How the second demo is made: several images, boxes and clips, in GLM-4.6V's layout."""
