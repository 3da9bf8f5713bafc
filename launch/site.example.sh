# shellcheck shell=bash
# What a site needs and no other: copy it to launch/site.sh (or name another file in MEGADICT_SITE)
# and take the # from the lines that apply. train.sbatch and command.sbatch source it on the first
# node, before srun. None of these lines has been tried by the authors on the hardware it is for.

# Modules, where the program was built with them:
# module load gcc/12 openmpi/4.1 hdf5/1.10

# NCCL finds fast networks by itself; what it finds, NCCL_DEBUG=INFO says. Sockets (start-up, and
# data where there is no InfiniBand) on the right interface:
# export NCCL_SOCKET_IFNAME=ib0
# These adapters only (names of `ibv_devices`; ^ = all others):
# export NCCL_IB_HCA=mlx5_0,mlx5_1
# The global index of RoCE networks (`show_gids`):
# export NCCL_IB_GID_INDEX=3

# Open MPI through UCX on InfiniBand: this port.
# export OMPI_MCA_pml=ucx UCX_NET_DEVICES=mlx5_0:1
# Open MPI without UCX: TCP on this network only (docker and virtual bridges have the same address
# on every node, which hangs MPI_Init).
# export OMPI_MCA_btl=tcp,self,vader OMPI_MCA_btl_tcp_if_include=10.0.0.0/8

# A node-local disk for the shards; $TMPDIR, /scratch/local, ... Then train with
# --data.stage_dir "$STAGE_DIR".
# export STAGE_DIR=${TMPDIR:-/tmp}/megadict-$USER
