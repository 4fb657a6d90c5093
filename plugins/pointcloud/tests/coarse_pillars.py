"""mmdetection3d's PointPillars for 32 x 32 m at coarse pillars: seconds on a CPU."""

_base_ = "mmdet3d::pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"
bounds = [0, -16.0, -3, 32.0, 16.0, 1]
voxel_size = [0.5, 0.5, 4]
model = {
    "data_preprocessor": {"voxel_layer": {"point_cloud_range": bounds, "voxel_size": voxel_size}},
    "voxel_encoder": {"voxel_size": voxel_size, "point_cloud_range": bounds},
    "middle_encoder": {"output_shape": [64, 64]},
    "bbox_head": {
        "anchor_generator": {
            "ranges": [
                [0, -16.0, -0.6, 32.0, 16.0, -0.6],
                [0, -16.0, -0.6, 32.0, 16.0, -0.6],
                [0, -16.0, -1.78, 32.0, 16.0, -1.78],
            ]
        }
    },
}
train_pipeline = [{"type": "PointsRangeFilter", "point_cloud_range": bounds}]
