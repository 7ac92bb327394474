"""Plain values of a conversion (layout, recipe, plan, run folder); imports no torch.

Reading order: `layout`, `quantities`, `recipe`, `plan`, `artifacts`.

    from hybridize.core.layout import Layout
    from hybridize.core.recipe import load_recipe

    layout = Layout.uniform(12).convert([3, 7], to="mamba2")
    print(layout)                     # AAAMAAAMAA AA
    recipe = load_recipe("h12.yaml", ["distill.optimizer.lr=1e-4"])
    print(recipe.stages[0].tokens)    # 300000000
"""
