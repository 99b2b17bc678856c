from ntk_inr.infinite.duals import Rectifier as Rectifier
from ntk_inr.infinite.network import InfiniteKernel as InfiniteKernel
from ntk_inr.infinite.network import infinite_kernel as infinite_kernel
from ntk_inr.infinite.quadrature import Quadrature as Quadrature
