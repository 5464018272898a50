if __name__ != "mnnpy.pipeline":
    raise ImportError("import this package as mnnpy.pipeline: the folder is only its place in the checkout")
