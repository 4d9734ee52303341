"""Recipes: the stages of training of the paper and of its code, and the loop that runs them.

Read table (what a recipe says), then starting (first weights), stored (feature maps of a frozen
front end), batches (what a step sees), stepping (one step), estimates (memory and time), preparing
(all of it together) and stage (the loop).

    tinydilate recipe list
    tinydilate recipe run voc-1-front-end --data VOCdevkit --init vgg.safetensors --out runs/voc
"""
