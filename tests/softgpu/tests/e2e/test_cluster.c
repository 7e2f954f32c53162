/* Launching clusters: by attribute, by what the kernel says, in graphs; what the device refuses. */
#include "clusters.h"
#include "e2e.h"

enum { BLOCKS = 16 };
static int *in, *out;
static unsigned *done;
static cudaStream_t s;

static void set_up(void)
{
    int x[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        x[i] = 100 + i;
    in = device_new(sizeof x), out = device_new(sizeof x), done = device_new(4);
    s = stream_new(cudaStreamNonBlocking);
    CU(cudaMemcpy(in, x, sizeof x, cudaMemcpyHostToDevice));
    CU(cudaMemset(out, 0, sizeof x));
    CU(cudaMemset(done, 0, 4));
    CU(cudaDeviceSynchronize());
}

static void check_ring(int n)
{
    int x[BLOCKS];
    CU(cudaStreamSynchronize(s));
    CU(cudaMemcpy(x, out, sizeof x, cudaMemcpyDeviceToHost));
    for (int i = 0; i < BLOCKS; i++)
        CHECK(x[i] == 100 + i / n * n + (i + 1) % n);
    CU(cudaMemset(out, 0, sizeof x));
    CU(cudaDeviceSynchronize());
}

static cudaLaunchConfig_t configuration(cudaLaunchAttribute attrs[2], unsigned blocks, unsigned cluster,
                                        int cooperative)
{
    attrs[0] = (cudaLaunchAttribute){.id = cudaLaunchAttributeClusterDimension, .val.clusterDim = {cluster, 1, 1}};
    attrs[1] = (cudaLaunchAttribute){.id = cudaLaunchAttributeCooperative, .val.cooperative = cooperative};
    return (cudaLaunchConfig_t){.gridDim = {blocks, 1, 1}, .blockDim = {64, 1, 1}, .stream = s, .attrs = attrs,
                                .numAttrs = 2};
}

static cudaError_t launch(const void *kernel, unsigned blocks, unsigned cluster, int cooperative)
{
    unsigned *count = cooperative ? done : NULL;
    void *args[] = {&in, &out, &count};
    cudaLaunchAttribute attrs[2];
    const cudaLaunchConfig_t config = configuration(attrs, blocks, cluster, cooperative);
    return cudaLaunchKernelExC(&config, kernel, args);
}

static void by_attribute(void)
{
    set_up();
    for (unsigned n = 1; n <= 8; n *= 2) {
        CU(launch(kernel_ring(), BLOCKS, n, 0));
        check_ring((int)n);
    }
    CU(cudaFuncSetAttribute(kernel_ring(), cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    CU(launch(kernel_ring(), BLOCKS, 16, 0));
    check_ring(16);
}

static void cooperative(void)
{
    set_up();
    CU(launch(kernel_ring(), BLOCKS, 2, 1));
    check_ring(2);
}

static void by_decree(void)
{
    struct cudaFuncAttributes attr;
    set_up();
    launch_ring_of_four(in, out, NULL, BLOCKS, s);
    CU(cudaGetLastError());
    check_ring(4);
    CU(launch(kernel_ring_of_four(), BLOCKS, 4, 0));
    check_ring(4);
    CU(cudaFuncGetAttributes(&attr, kernel_ring_of_four()));
    CHECK(attr.clusterDimMustBeSet == 1 && attr.requiredClusterWidth == 4 && attr.requiredClusterHeight == 1);
    CU(cudaFuncGetAttributes(&attr, kernel_ring()));
    CHECK(attr.clusterDimMustBeSet == 0 && attr.requiredClusterWidth == 0);
}

static void in_graphs(void)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaGraphNode_t node;
    set_up();
    CU(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CU(launch(kernel_ring(), BLOCKS, 2, 1));
    CU(cudaStreamEndCapture(s, &graph));
    CU(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < 3; i++) {
        CU(cudaGraphLaunch(exec, s));
        check_ring(2);
    }
    unsigned *count = done;
    void *args[] = {&in, &out, &count};
    struct cudaKernelNodeParams params = {.func = (void *)kernel_ring(), .gridDim = {BLOCKS, 1, 1},
                                          .blockDim = {32, 1, 1}, .kernelParams = args};
    size_t n = 1;
    CU(cudaGraphGetNodes(graph, &node, &n));
    CU(cudaGraphExecKernelNodeSetParams(exec, node, &params)); /* new threads, the same cluster */
    CU(cudaGraphLaunch(exec, s));
    check_ring(2);
    count = NULL;
    params.func = (void *)kernel_ring_of_four();
    CU(cudaGraphCreate(&graph, 0));
    CU(cudaGraphAddKernelNode(&node, graph, NULL, 0, &params));
    CU(cudaGraphInstantiate(&exec, graph, 0));
    CU(cudaGraphLaunch(exec, s));
    check_ring(4);
}

static void refusals(void)
{
    set_up();
    IS(launch(kernel_ring(), 9, 9, 0), cudaErrorInvalidClusterSize);
    IS(launch(kernel_ring(), BLOCKS, 16, 0), cudaErrorInvalidClusterSize);
    IS(launch(kernel_ring(), 15, 2, 0), cudaErrorInvalidConfiguration);
    IS(launch(kernel_ring_of_four(), BLOCKS, 2, 0), cudaErrorInvalidClusterSize);
    launch_ring_of_four(in, out, NULL, 6, s);
    IS(cudaGetLastError(), cudaErrorInvalidConfiguration);
    IS(launch(kernel_ring(), 132 * 32 + 2, 2, 1), cudaErrorCooperativeLaunchTooLarge);
    CU(launch(kernel_ring(), BLOCKS, 2, 0));
    check_ring(2);
}

static void occupancy(void)
{
    int n, value;
    cudaLaunchAttribute attrs[2];
    set_up();
    CU(cudaDeviceGetAttribute(&value, cudaDevAttrClusterLaunch, 0));
    CHECK(value == 1);
    CU(cudaFuncSetAttribute(kernel_ring(), cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
    for (int i = 0; i < 3; i++) { /* a block to a multiprocessor, of which two GPCs have 18 and six 16 */
        static const int clusters[3] = {66, 32, 16};
        cudaLaunchConfig_t config = configuration(attrs, BLOCKS, 2u << i, 0);
        config.dynamicSmemBytes = 200 * 1024;
        CU(cudaOccupancyMaxActiveClusters(&n, kernel_ring(), &config));
        CHECK(n == clusters[i]);
    }
    cudaLaunchConfig_t config = configuration(attrs, BLOCKS, 2, 0);
    config.blockDim.x = 1024;
    CU(cudaOccupancyMaxActiveClusters(&n, kernel_ring(), &config));
    CHECK(n == 132);
    CU(cudaOccupancyMaxPotentialClusterSize(&n, kernel_ring(), &config));
    CHECK(n == 8);
    CU(cudaFuncSetAttribute(kernel_ring(), cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    CU(cudaOccupancyMaxPotentialClusterSize(&n, kernel_ring(), &config));
    CHECK(n == 16);
}

static void exited_block(void)
{
    set_up();
    CU(launch(kernel_look_behind(), 2, 2, 0));
    IS(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
}

static const struct e2e_test tests[] = {
    {"cluster_by_attribute", NULL, by_attribute, NULL, 0},
    {"cluster_by_attribute_eager", "SG_ASYNC=eager", by_attribute, NULL, 0},
    {"cluster_checked", "SG_CHECK_UNINIT=1 SG_CHECK_RACE=1 SG_SCHED=3", by_attribute, NULL, 0},
    {"cluster_cooperative", NULL, cooperative, NULL, 0},
    {"cluster_cooperative_checked", "SG_CHECK_UNINIT=1 SG_CHECK_RACE=1 SG_SCHED=1", cooperative, NULL, 0},
    {"cluster_by_decree", NULL, by_decree, NULL, 0},
    {"cluster_in_graphs", NULL, in_graphs, NULL, 0},
    {"cluster_in_graphs_random", "SG_ASYNC=random:5 SG_SCHED=2", in_graphs, NULL, 0},
    {"cluster_refusals", NULL, refusals, "__cluster_dims__ says 4 x 1 x 1", 0},
    {"cluster_occupancy", NULL, occupancy, NULL, 0},
    {"cluster_exited_block", NULL, exited_block, "block 1 of the cluster, (1,0,0), which has exited", 0},
};
E2E_MAIN(tests)
