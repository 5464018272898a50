"""Which family declares which op, so that a model loads the families that it uses and no others.

A test keeps this equal to the decorators.
"""

from __future__ import annotations

__all__ = ["FAMILIES", "FAMILY_OF", "RULE_MODULES"]

#: Family → its ops.
FAMILIES = {
    "atomic": (
        "ArgReduce Binary Convert Convolution Gather MatMul Pool PrefixScan Random Raster Reduce Reinterpret Scatter "
        "Select Sort Unary"
    ),
    "elementwise": (
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast "
        "CastLike Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid "
        "HardSwish Hardmax IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow "
        "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum SwiGLU Swish Tan Tanh "
        "ThresholdedRelu Where Xor"
    ),
    "reduce": (
        "ArgMax ArgMin CumProd CumSum Det LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax "
        "ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax"
    ),
    "movement": (
        "CenterCropPad Concat DepthToSpace Expand Flatten Identity Pad Reshape ReverseSequence Shape Size Slice "
        "SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze"
    ),
    "indexing": "Compress GatherElements GatherND NonZero OneHot ScatterElements ScatterND TensorScatter TopK Unique",
    "generate": (
        "Bernoulli BlackmanWindow ConstantOfShape EyeLike HammingWindow HannWindow Multinomial RandomNormal "
        "RandomNormalLike RandomUniform RandomUniformLike Range"
    ),
    "contract": "Col2Im Conv ConvInteger ConvTranspose DeformConv Einsum Gemm MatMulInteger QLinearConv QLinearMatMul",
    "pool": "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxRoiPool MaxUnpool",
    "norm": (
        "BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization "
        "MeanVarianceNormalization RMSNormalization"
    ),
    "quantize": "DequantizeLinear DynamicQuantizeLinear QuantizeLinear",
    "image": "AffineGrid GridSample ImageDecoder NonMaxSuppression Resize RoiAlign",
    "signal": "DFT MelWeightMatrix STFT",
    "attention": "Attention CausalConvWithState LinearAttention RotaryEmbedding preview.FlexAttention",
    "recurrent": "GRU LSTM RNN",
    "loss": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "sequence": (
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength SplitToSequence"
    ),
    "text": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "ml": (
        "ml.ArrayFeatureExtractor ml.Binarizer ml.CastMap ml.CategoryMapper ml.DictVectorizer ml.FeatureVectorizer "
        "ml.Imputer ml.LabelEncoder ml.Normalizer ml.OneHotEncoder ml.Scaler ml.ZipMap"
    ),
    "ml_models": (
        "ml.LinearClassifier ml.LinearRegressor ml.SVMClassifier ml.SVMRegressor ml.TreeEnsemble "
        "ml.TreeEnsembleClassifier ml.TreeEnsembleRegressor"
    ),
    "training": "training.Adagrad training.Adam training.Gradient training.Momentum",
    "control": "If Loop Scan SequenceMap",
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names.split()}
#: Modules of rules of families that need more than the one of their own name.
RULE_MODULES = {"contract": ("contract", "transposed", "einsum"), "ml_models": ("ml_models", "ml_trees")}
