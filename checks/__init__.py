"""diagnose.py 查些什么：每个模块的 CHECKS 里是它的检查，加一项只改一个文件。"""
