# Made by: python -m serving.api.protocol.generate (from inference.proto). Do not edit.
# ruff: noqa
"""The messages of inference.proto."""

from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_FILE = (
    b"\n\x0finference.proto\x12\tinfer"
    b'ence"\x13\n\x11ServerLiveReques'
    b't"(\n\x12ServerLiveResponse\x12'
    b'\x12\n\x04live\x18\x01 \x01(\x08R\x04live"\x14\n\x12S'
    b'erverReadyRequest"+\n\x13Ser'
    b"verReadyResponse\x12\x14\n\x05read"
    b'y\x18\x01 \x01(\x08R\x05ready"A\n\x11ModelR'
    b"eadyRequest\x12\x12\n\x04name\x18\x01 \x01("
    b"\tR\x04name\x12\x18\n\x07version\x18\x02 \x01(\t"
    b'R\x07version"*\n\x12ModelReadyR'
    b"esponse\x12\x14\n\x05ready\x18\x01 \x01(\x08R\x05"
    b'ready"\x17\n\x15ServerMetadataR'
    b'equest"f\n\x16ServerMetadata'
    b"Response\x12\x12\n\x04name\x18\x01 \x01(\tR\x04"
    b"name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07v"
    b"ersion\x12\x1e\n\nextensions\x18\x03 \x03"
    b'(\tR\nextensions"D\n\x14ModelM'
    b"etadataRequest\x12\x12\n\x04name\x18\x01"
    b" \x01(\tR\x04name\x12\x18\n\x07version\x18\x02 "
    b'\x01(\tR\x07version"\xcf\x02\n\x15ModelMe'
    b"tadataResponse\x12\x12\n\x04name\x18\x01"
    b" \x01(\tR\x04name\x12\x1a\n\x08versions\x18\x02"
    b" \x03(\tR\x08versions\x12\x1a\n\x08platfo"
    b"rm\x18\x03 \x01(\tR\x08platform\x12G\n\x06in"
    b"puts\x18\x04 \x03(\x0b2/.inference.M"
    b"odelMetadataResponse.Ten"
    b"sorMetadataR\x06inputs\x12I\n\x07o"
    b"utputs\x18\x05 \x03(\x0b2/.inference"
    b".ModelMetadataResponse.T"
    b"ensorMetadataR\x07outputs\x1aV"
    b"\n\x0eTensorMetadata\x12\x12\n\x04name"
    b"\x18\x01 \x01(\tR\x04name\x12\x1a\n\x08datatype"
    b"\x18\x02 \x01(\tR\x08datatype\x12\x14\n\x05shap"
    b'e\x18\x03 \x03(\x03R\x05shape"\xd7\x01\n\x0eInfer'
    b"Parameter\x12\x1f\n\nbool_param\x18"
    b"\x01 \x01(\x08H\x00R\tboolParam\x12!\n\x0bin"
    b"t64_param\x18\x02 \x01(\x03H\x00R\nint64"
    b"Param\x12#\n\x0cstring_param\x18\x03 "
    b"\x01(\tH\x00R\x0bstringParam\x12#\n\x0cdo"
    b"uble_param\x18\x04 \x01(\x01H\x00R\x0bdoub"
    b"leParam\x12#\n\x0cuint64_param\x18"
    b"\x05 \x01(\x04H\x00R\x0buint64ParamB\x12\n\x10"
    b'parameter_choice"\xc3\x02\n\x13Inf'
    b"erTensorContents\x12#\n\rbool"
    b"_contents\x18\x01 \x03(\x08R\x0cboolCon"
    b"tents\x12!\n\x0cint_contents\x18\x02 "
    b"\x03(\x05R\x0bintContents\x12%\n\x0eint6"
    b"4_contents\x18\x03 \x03(\x03R\rint64C"
    b"ontents\x12#\n\ruint_contents"
    b"\x18\x04 \x03(\rR\x0cuintContents\x12'\n\x0f"
    b"uint64_contents\x18\x05 \x03(\x04R\x0eu"
    b"int64Contents\x12#\n\rfp32_co"
    b"ntents\x18\x06 \x03(\x02R\x0cfp32Conten"
    b"ts\x12#\n\rfp64_contents\x18\x07 \x03("
    b"\x01R\x0cfp64Contents\x12%\n\x0ebytes"
    b"_contents\x18\x08 \x03(\x0cR\rbytesCo"
    b'ntents"\x9d\x08\n\x11ModelInferReq'
    b"uest\x12\x1d\n\nmodel_name\x18\x01 \x01(\t"
    b"R\tmodelName\x12#\n\rmodel_ver"
    b"sion\x18\x02 \x01(\tR\x0cmodelVersion"
    b"\x12\x0e\n\x02id\x18\x03 \x01(\tR\x02id\x12L\n\npara"
    b"meters\x18\x04 \x03(\x0b2,.inference"
    b".ModelInferRequest.Param"
    b"etersEntryR\nparameters\x12E"
    b"\n\x06inputs\x18\x05 \x03(\x0b2-.inferen"
    b"ce.ModelInferRequest.Inf"
    b"erInputTensorR\x06inputs\x12Q\n"
    b"\x07outputs\x18\x06 \x03(\x0b27.inferen"
    b"ce.ModelInferRequest.Inf"
    b"erRequestedOutputTensorR"
    b"\x07outputs\x12,\n\x12raw_input_co"
    b"ntents\x18\x07 \x03(\x0cR\x10rawInputCo"
    b"ntents\x1a\xcd\x02\n\x10InferInputTen"
    b"sor\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12"
    b"\x1a\n\x08datatype\x18\x02 \x01(\tR\x08datat"
    b"ype\x12\x14\n\x05shape\x18\x03 \x03(\x03R\x05shap"
    b"e\x12]\n\nparameters\x18\x04 \x03(\x0b2=."
    b"inference.ModelInferRequ"
    b"est.InferInputTensor.Par"
    b"ametersEntryR\nparameters"
    b"\x12:\n\x08contents\x18\x05 \x01(\x0b2\x1e.inf"
    b"erence.InferTensorConten"
    b"tsR\x08contents\x1aX\n\x0fParamete"
    b"rsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03ke"
    b"y\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.infer"
    b"ence.InferParameterR\x05val"
    b"ue:\x028\x01\x1a\xf3\x01\n\x1aInferRequeste"
    b"dOutputTensor\x12\x12\n\x04name\x18\x01 "
    b"\x01(\tR\x04name\x12g\n\nparameters\x18"
    b"\x02 \x03(\x0b2G.inference.ModelI"
    b"nferRequest.InferRequest"
    b"edOutputTensor.Parameter"
    b"sEntryR\nparameters\x1aX\n\x0fPa"
    b"rametersEntry\x12\x10\n\x03key\x18\x01 \x01"
    b"(\tR\x03key\x12/\n\x05value\x18\x02 \x01(\x0b2\x19"
    b".inference.InferParamete"
    b"rR\x05value:\x028\x01\x1aX\n\x0fParamete"
    b"rsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03ke"
    b"y\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.infer"
    b"ence.InferParameterR\x05val"
    b'ue:\x028\x01"\xdf\x05\n\x12ModelInferRes'
    b"ponse\x12\x1d\n\nmodel_name\x18\x01 \x01("
    b"\tR\tmodelName\x12#\n\rmodel_ve"
    b"rsion\x18\x02 \x01(\tR\x0cmodelVersio"
    b"n\x12\x0e\n\x02id\x18\x03 \x01(\tR\x02id\x12M\n\npar"
    b"ameters\x18\x04 \x03(\x0b2-.inferenc"
    b"e.ModelInferResponse.Par"
    b"ametersEntryR\nparameters"
    b"\x12I\n\x07outputs\x18\x05 \x03(\x0b2/.infe"
    b"rence.ModelInferResponse"
    b".InferOutputTensorR\x07outp"
    b"uts\x12.\n\x13raw_output_conten"
    b"ts\x18\x06 \x03(\x0cR\x11rawOutputConte"
    b"nts\x1a\xd0\x02\n\x11InferOutputTenso"
    b"r\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1a\n"
    b"\x08datatype\x18\x02 \x01(\tR\x08datatyp"
    b"e\x12\x14\n\x05shape\x18\x03 \x03(\x03R\x05shape\x12"
    b"_\n\nparameters\x18\x04 \x03(\x0b2?.in"
    b"ference.ModelInferRespon"
    b"se.InferOutputTensor.Par"
    b"ametersEntryR\nparameters"
    b"\x12:\n\x08contents\x18\x05 \x01(\x0b2\x1e.inf"
    b"erence.InferTensorConten"
    b"tsR\x08contents\x1aX\n\x0fParamete"
    b"rsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03ke"
    b"y\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.infer"
    b"ence.InferParameterR\x05val"
    b"ue:\x028\x01\x1aX\n\x0fParametersEntr"
    b"y\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12/\n\x05v"
    b"alue\x18\x02 \x01(\x0b2\x19.inference.I"
    b"nferParameterR\x05value:\x028\x01"
    b'"\x85\x01\n\x18ModelStreamInferRes'
    b"ponse\x12#\n\rerror_message\x18\x01"
    b" \x01(\tR\x0cerrorMessage\x12D\n\x0ein"
    b"fer_response\x18\x02 \x01(\x0b2\x1d.inf"
    b"erence.ModelInferRespons"
    b'eR\rinferResponse"f\n\nMode'
    b"lInput\x12\x12\n\x04name\x18\x01 \x01(\tR\x04na"
    b"me\x120\n\tdata_type\x18\x02 \x01(\x0e2\x13."
    b"inference.DataTypeR\x08data"
    b"Type\x12\x12\n\x04dims\x18\x04 \x03(\x03R\x04dims"
    b'"g\n\x0bModelOutput\x12\x12\n\x04name\x18'
    b"\x01 \x01(\tR\x04name\x120\n\tdata_type"
    b"\x18\x02 \x01(\x0e2\x13.inference.DataT"
    b"ypeR\x08dataType\x12\x12\n\x04dims\x18\x03 "
    b'\x03(\x03R\x04dims"\xc0\x01\n\x0bModelConfi'
    b"g\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1a\n"
    b"\x08platform\x18\x02 \x01(\tR\x08platfor"
    b"m\x12$\n\x0emax_batch_size\x18\x04 \x01("
    b"\x05R\x0cmaxBatchSize\x12+\n\x05input"
    b"\x18\x05 \x03(\x0b2\x15.inference.Model"
    b"InputR\x05input\x12.\n\x06output\x18\x06"
    b" \x03(\x0b2\x16.inference.ModelOu"
    b'tputR\x06output"B\n\x12ModelCon'
    b"figRequest\x12\x12\n\x04name\x18\x01 \x01(\t"
    b"R\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR"
    b'\x07version"E\n\x13ModelConfigR'
    b"esponse\x12.\n\x06config\x18\x01 \x01(\x0b2"
    b"\x16.inference.ModelConfigR"
    b'\x06config"F\n\x16ModelStatisti'
    b"csRequest\x12\x12\n\x04name\x18\x01 \x01(\tR"
    b"\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07"
    b'version"9\n\x11StatisticDura'
    b"tion\x12\x14\n\x05count\x18\x01 \x01(\x04R\x05cou"
    b'nt\x12\x0e\n\x02ns\x18\x02 \x01(\x04R\x02ns"\xf2\x03\n\x0fI'
    b"nferStatistics\x126\n\x07succes"
    b"s\x18\x01 \x01(\x0b2\x1c.inference.Stat"
    b"isticDurationR\x07success\x120"
    b"\n\x04fail\x18\x02 \x01(\x0b2\x1c.inference"
    b".StatisticDurationR\x04fail"
    b"\x122\n\x05queue\x18\x03 \x01(\x0b2\x1c.infere"
    b"nce.StatisticDurationR\x05q"
    b"ueue\x12A\n\rcompute_input\x18\x04 "
    b"\x01(\x0b2\x1c.inference.Statisti"
    b"cDurationR\x0ccomputeInput\x12"
    b"A\n\rcompute_infer\x18\x05 \x01(\x0b2\x1c"
    b".inference.StatisticDura"
    b"tionR\x0ccomputeInfer\x12C\n\x0eco"
    b"mpute_output\x18\x06 \x01(\x0b2\x1c.inf"
    b"erence.StatisticDuration"
    b"R\rcomputeOutput\x129\n\tcache"
    b"_hit\x18\x07 \x01(\x0b2\x1c.inference.S"
    b"tatisticDurationR\x08cacheH"
    b"it\x12;\n\ncache_miss\x18\x08 \x01(\x0b2\x1c"
    b".inference.StatisticDura"
    b'tionR\tcacheMiss"\x80\x02\n\x14Infe'
    b"rBatchStatistics\x12\x1d\n\nbatc"
    b"h_size\x18\x01 \x01(\x04R\tbatchSize\x12"
    b"A\n\rcompute_input\x18\x02 \x01(\x0b2\x1c"
    b".inference.StatisticDura"
    b"tionR\x0ccomputeInput\x12A\n\rco"
    b"mpute_infer\x18\x03 \x01(\x0b2\x1c.infe"
    b"rence.StatisticDurationR"
    b"\x0ccomputeInfer\x12C\n\x0ecompute"
    b"_output\x18\x04 \x01(\x0b2\x1c.inferenc"
    b"e.StatisticDurationR\rcom"
    b'puteOutput"\xbf\x02\n\x0fModelStat'
    b"istics\x12\x12\n\x04name\x18\x01 \x01(\tR\x04na"
    b"me\x12\x18\n\x07version\x18\x02 \x01(\tR\x07ver"
    b"sion\x12%\n\x0elast_inference\x18\x03"
    b" \x01(\x04R\rlastInference\x12'\n\x0fi"
    b"nference_count\x18\x04 \x01(\x04R\x0ein"
    b"ferenceCount\x12'\n\x0fexecutio"
    b"n_count\x18\x05 \x01(\x04R\x0eexecution"
    b"Count\x12C\n\x0finference_stats"
    b"\x18\x06 \x01(\x0b2\x1a.inference.Infer"
    b"StatisticsR\x0einferenceSta"
    b"ts\x12@\n\x0bbatch_stats\x18\x07 \x03(\x0b2"
    b"\x1f.inference.InferBatchSt"
    b'atisticsR\nbatchStats"V\n\x17'
    b"ModelStatisticsResponse\x12"
    b";\n\x0bmodel_stats\x18\x01 \x03(\x0b2\x1a.i"
    b"nference.ModelStatistics"
    b'R\nmodelStats"\xba\x01\n\x18ModelRe'
    b"positoryParameter\x12\x1f\n\nboo"
    b"l_param\x18\x01 \x01(\x08H\x00R\tboolPar"
    b"am\x12!\n\x0bint64_param\x18\x02 \x01(\x03H"
    b"\x00R\nint64Param\x12#\n\x0cstring_"
    b"param\x18\x03 \x01(\tH\x00R\x0bstringPar"
    b"am\x12!\n\x0bbytes_param\x18\x04 \x01(\x0cH"
    b"\x00R\nbytesParamB\x12\n\x10paramet"
    b'er_choice"W\n\x16RepositoryI'
    b"ndexRequest\x12'\n\x0frepositor"
    b"y_name\x18\x01 \x01(\tR\x0erepository"
    b"Name\x12\x14\n\x05ready\x18\x02 \x01(\x08R\x05rea"
    b'dy"\xca\x01\n\x17RepositoryIndexRe'
    b"sponse\x12E\n\x06models\x18\x01 \x03(\x0b2-"
    b".inference.RepositoryInd"
    b"exResponse.ModelIndexR\x06m"
    b"odels\x1ah\n\nModelIndex\x12\x12\n\x04n"
    b"ame\x18\x01 \x01(\tR\x04name\x12\x18\n\x07versi"
    b"on\x18\x02 \x01(\tR\x07version\x12\x14\n\x05sta"
    b"te\x18\x03 \x01(\tR\x05state\x12\x16\n\x06reaso"
    b'n\x18\x04 \x01(\tR\x06reason"\x9f\x02\n\x1aRepo'
    b"sitoryModelLoadRequest\x12'"
    b"\n\x0frepository_name\x18\x01 \x01(\tR"
    b"\x0erepositoryName\x12\x1d\n\nmodel"
    b"_name\x18\x02 \x01(\tR\tmodelName\x12U"
    b"\n\nparameters\x18\x03 \x03(\x0b25.inf"
    b"erence.RepositoryModelLo"
    b"adRequest.ParametersEntr"
    b"yR\nparameters\x1ab\n\x0fParamet"
    b"ersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03k"
    b"ey\x129\n\x05value\x18\x02 \x01(\x0b2#.infe"
    b"rence.ModelRepositoryPar"
    b'ameterR\x05value:\x028\x01"\x1d\n\x1bRep'
    b"ositoryModelLoadResponse"
    b'"\xa3\x02\n\x1cRepositoryModelUnlo'
    b"adRequest\x12'\n\x0frepository_"
    b"name\x18\x01 \x01(\tR\x0erepositoryNa"
    b"me\x12\x1d\n\nmodel_name\x18\x02 \x01(\tR\t"
    b"modelName\x12W\n\nparameters\x18"
    b"\x03 \x03(\x0b27.inference.Reposi"
    b"toryModelUnloadRequest.P"
    b"arametersEntryR\nparamete"
    b"rs\x1ab\n\x0fParametersEntry\x12\x10\n"
    b"\x03key\x18\x01 \x01(\tR\x03key\x129\n\x05value"
    b"\x18\x02 \x01(\x0b2#.inference.Model"
    b"RepositoryParameterR\x05val"
    b'ue:\x028\x01"\x1f\n\x1dRepositoryMode'
    b"lUnloadResponse*\xda\x01\n\x08Data"
    b"Type\x12\x10\n\x0cTYPE_INVALID\x10\x00\x12\r"
    b"\n\tTYPE_BOOL\x10\x01\x12\x0e\n\nTYPE_UI"
    b"NT8\x10\x02\x12\x0f\n\x0bTYPE_UINT16\x10\x03\x12\x0f"
    b"\n\x0bTYPE_UINT32\x10\x04\x12\x0f\n\x0bTYPE_"
    b"UINT64\x10\x05\x12\r\n\tTYPE_INT8\x10\x06\x12"
    b"\x0e\n\nTYPE_INT16\x10\x07\x12\x0e\n\nTYPE_"
    b"INT32\x10\x08\x12\x0e\n\nTYPE_INT64\x10\t\x12"
    b"\r\n\tTYPE_FP16\x10\n\x12\r\n\tTYPE_F"
    b"P32\x10\x0b\x12\r\n\tTYPE_FP64\x10\x0c2\xb7\x08\n"
    b"\x14GRPCInferenceService\x12K\n"
    b"\nServerLive\x12\x1c.inference."
    b"ServerLiveRequest\x1a\x1d.infe"
    b"rence.ServerLiveResponse"
    b'"\x00\x12N\n\x0bServerReady\x12\x1d.infe'
    b"rence.ServerReadyRequest"
    b"\x1a\x1e.inference.ServerReady"
    b'Response"\x00\x12K\n\nModelReady'
    b"\x12\x1c.inference.ModelReadyR"
    b"equest\x1a\x1d.inference.Model"
    b'ReadyResponse"\x00\x12W\n\x0eServe'
    b"rMetadata\x12 .inference.Se"
    b"rverMetadataRequest\x1a!.in"
    b"ference.ServerMetadataRe"
    b'sponse"\x00\x12T\n\rModelMetadat'
    b"a\x12\x1f.inference.ModelMetad"
    b"ataRequest\x1a .inference.M"
    b'odelMetadataResponse"\x00\x12K'
    b"\n\nModelInfer\x12\x1c.inference"
    b".ModelInferRequest\x1a\x1d.inf"
    b"erence.ModelInferRespons"
    b'e"\x00\x12[\n\x10ModelStreamInfer\x12'
    b"\x1c.inference.ModelInferRe"
    b"quest\x1a#.inference.ModelS"
    b'treamInferResponse"\x00(\x010\x01'
    b"\x12N\n\x0bModelConfig\x12\x1d.infere"
    b"nce.ModelConfigRequest\x1a\x1e"
    b".inference.ModelConfigRe"
    b'sponse"\x00\x12Z\n\x0fModelStatist'
    b"ics\x12!.inference.ModelSta"
    b'tisticsRequest\x1a".inferen'
    b"ce.ModelStatisticsRespon"
    b'se"\x00\x12Z\n\x0fRepositoryIndex\x12'
    b"!.inference.RepositoryIn"
    b'dexRequest\x1a".inference.R'
    b'epositoryIndexResponse"\x00'
    b"\x12f\n\x13RepositoryModelLoad\x12"
    b"%.inference.RepositoryMo"
    b"delLoadRequest\x1a&.inferen"
    b"ce.RepositoryModelLoadRe"
    b'sponse"\x00\x12l\n\x15RepositoryMo'
    b"delUnload\x12'.inference.Re"
    b"positoryModelUnloadReque"
    b"st\x1a(.inference.Repositor"
    b'yModelUnloadResponse"\x00b\x06'
    b"proto3"
)

_pool = DescriptorPool()
_pool.AddSerializedFile(_FILE)
DESCRIPTOR = _pool.FindFileByName("inference.proto")


def __getattr__(name: str) -> Any:
    if name not in DESCRIPTOR.message_types_by_name:
        raise AttributeError(f"no message {name!r} in inference.proto")
    made = GetMessageClass(DESCRIPTOR.message_types_by_name[name])
    globals()[name] = made
    return made
