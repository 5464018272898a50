if __name__ != "mnnpy.deploy":
    raise ImportError("import this package as mnnpy.deploy: the folder is only its place in the checkout")
