//! What a packed file holds, in its order.

use moewe_gguf::{ExpertName, Header, Part, TensorInfo, TensorType};

/// The key of the tensors' checksums: XXH3 of each one's bytes, in the order
/// of the file.
pub const CHECKSUMS_KEY: &str = "moewe.packed.checksums";
/// Bytes of a tensor that are in memory at a time; one group of rows at least.
pub const PIECE_BYTES: u64 = 4 << 20;

/// Rows that are interleaved: the first that is possible.
const GROUP_ROWS: [u64; 2] = [8, 4];

/// A tensor of the packed file, and where it comes from.
pub struct Tensor {
    pub name: String,
    /// The length of a row first.
    pub dims: Vec<u64>,
    /// The type in the original.
    pub ty: TensorType,
    /// The type with interleaved rows, if it shall get it.
    pub packed: Option<TensorType>,
    pub file: usize,
    pub offset: u64,
    /// Bytes, in the original and packed.
    pub size: u64,
    /// The layer and the number of the expert that it belongs to.
    expert: Option<(u32, u32)>,
}

impl Tensor {
    fn new(name: String, info: &TensorInfo, dims: &[u64]) -> Self {
        let n_dims = dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
        let dims = dims[..n_dims].to_vec();
        let fits = |rows: &u64| dims.len() == 2 && dims[1].is_multiple_of(*rows);
        let packed = GROUP_ROWS.into_iter().filter(fits).find_map(|rows| info.ty.packed(rows));
        let size = dims.iter().product::<u64>() / info.ty.block_len() * info.ty.block_bytes();
        let (ty, file, offset) = (info.ty, info.file, info.offset);
        Self { name, dims, ty, packed, file, offset, size, expert: None }
    }

    pub fn row_bytes(&self) -> u64 {
        self.dims[0] / self.ty.block_len() * self.ty.block_bytes()
    }

    /// Bytes that must be copied together.
    pub fn group_bytes(&self) -> u64 {
        self.packed.map_or(1, |ty| ty.group_rows() * self.row_bytes())
    }
}

/// The weights that every token needs, in the order of the original; then the
/// experts, layer by layer, the matrices of each together and apart from those
/// of others. The engine must have loaded the model.
pub fn tensors(header: &Header) -> Vec<Tensor> {
    let mut infos: Vec<_> = header.tensors.values().collect();
    infos.sort_by_key(|info| (info.file, info.offset));
    // Gate, up and down of an expert keep this order.
    infos.sort_by_key(|info| matrix_of_experts(info).map(|m| (m.layer, m.projection)));
    let mut tensors = Vec::new();
    for info in infos {
        let Some(matrix) = matrix_of_experts(info) else {
            tensors.push(Tensor::new(info.name.clone(), info, &info.dims));
            continue;
        };
        let n = if matrix.expert.is_none() { info.dims[2] } else { 1 };
        for i in 0..n {
            let expert = matrix.expert.unwrap_or(i as u32);
            let name = ExpertName { expert: Some(expert), ..matrix };
            let mut tensor = Tensor::new(name.to_string(), info, &info.dims[..2]);
            tensor.offset += i * tensor.size;
            tensor.expert = Some((matrix.layer, expert));
            tensors.push(tensor);
        }
    }
    tensors.sort_by_key(|tensor| tensor.expert);
    tensors
}

/// What the tensor holds of which experts, if it is one of the matrices that are read
/// together.
fn matrix_of_experts(info: &TensorInfo) -> Option<ExpertName> {
    ExpertName::parse(&info.name).filter(|name| name.part == Part::Weight)
}
