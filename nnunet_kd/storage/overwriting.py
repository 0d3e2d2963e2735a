"""Protection of inputs. The runtime holds it, because it also exists without the other rooms."""

from nnunet_kd.runtime.files.overwriting import check_kept, lies_in

__all__ = ["check_kept", "lies_in"]
