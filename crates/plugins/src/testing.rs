//! A plug-in for tests, on a socket of its own.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// Serves until it is dropped. What it is asked, other than to say what it implements, `answer` answers.
#[derive(Debug)]
pub struct TestPlugin {
    _server: JoinSet<()>,
}

impl TestPlugin {
    /// A plug-in that listens on `socket` and implements `capability`. `answer` is given the method, as
    /// `SecretProvider.GetSecret`, and the request; no answer stands for an error inside the plug-in.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn start<F, A>(socket: &Path, capability: &str, answer: F) -> io::Result<TestPlugin>
    where
        F: Fn(String, Value) -> A + Send + Sync + 'static,
        A: Future<Output = Option<Value>> + Send + 'static,
    {
        let listener = UnixListener::bind(socket)?;
        let (answer, capability) = (Arc::new(answer), capability.to_owned());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let (answer, capability) = (answer.clone(), capability.clone());
                        let service = service_fn(move |request: Request<Incoming>| {
                            let (answer, capability) = (answer.clone(), capability.clone());
                            async move { Ok::<_, Infallible>(respond(request, &*answer, &capability).await) }
                        });
                        connections.spawn(async move {
                            // A caller that hangs up is no error of the test.
                            let _ = hyper::server::conn::http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service)
                                .await;
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(TestPlugin { _server: server })
    }
}

async fn respond<A: Future<Output = Option<Value>>>(
    request: Request<Incoming>,
    answer: &(impl Fn(String, Value) -> A + ?Sized),
    capability: &str,
) -> Response<Full<Bytes>> {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answered = if method == "Plugin.Activate" {
        Some(json!({ "Implements": [capability] }))
    } else {
        answer(method, serde_json::from_slice(&body).unwrap_or_default()).await
    };
    let status = if answered.is_some() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let mut response = Response::new(Full::new(Bytes::from(answered.unwrap_or_default().to_string())));
    *response.status_mut() = status;
    response
}
