//! Page requests beside what ends them.

use std::sync::Arc;

use ioasid_core::{
    Prot,
    sync::{Condvar, Mutex, thread},
};
use ioasid_iommu::{Device, DmaSource, PageRequest, PageRequestHandler, PageResponse};

use super::{IOVA, check, common::*, page, setup};

/// A handler on a thread of its own, as a fault queue is.
#[derive(Debug, Default)]
struct Queue {
    requests: Mutex<Vec<PageRequest>>,
    arrived: Condvar,
}

impl PageRequestHandler for Queue {
    fn request(&self, request: PageRequest) {
        self.requests.lock().push(request);
        self.arrived.notify_one();
    }
}

/// Where an engine waits for its answer.
#[derive(Debug, Default)]
struct Answer {
    response: Mutex<Option<PageResponse>>,
    given: Condvar,
}

impl Answer {
    fn wait(&self) -> PageResponse {
        let mut response = self.response.lock();
        loop {
            if let Some(response) = *response {
                return response;
            }
            response = self.given.wait(response);
        }
    }
}

/// An engine that misses one page beyond the mapped one, asks for it and waits.
fn faulting_engine(device: Arc<Device>) -> thread::JoinHandle<PageResponse> {
    thread::spawn(move || {
        let mut port = device.port();
        let answer = Arc::new(Answer::default());
        let fault = *port
            .enter(None)
            .write(IOVA + 4096, &[1])
            .fault()
            .expect("not mapped yet");
        let given = Arc::clone(&answer);
        let asked = device.request_page(
            &fault,
            Box::new(move |response| {
                *given.response.lock() = Some(response);
                given.given.notify_one();
            }),
        );
        if asked.is_err() {
            return PageResponse::Invalid;
        }
        let response = answer.wait();
        if response == PageResponse::Success {
            let transfer = port.enter(None).write(IOVA + 4096, &[1]);
            assert!(transfer.is_complete());
        }
        response
    })
}

#[test]
fn an_unmap_while_its_caller_owes_a_page_answer_completes() {
    check(|| {
        let setup = setup();
        let queue = Arc::new(Queue::default());
        setup.domain.set_page_request_handler(Some(queue.clone()));
        DmaSource::new(&setup.device, None)
            .attach(&setup.domain, &sink())
            .unwrap();
        let engine = faulting_engine(Arc::clone(&setup.device));
        let mut requests = queue.requests.lock();
        while requests.is_empty() {
            requests = queue.arrived.wait(requests);
        }
        let request = requests.remove(0);
        drop(requests);
        // The engine waits for us; this must not wait for the engine.
        assert_eq!(setup.domain.unmap(page()), 4096);
        setup
            .domain
            .map(request.iova, setup.memory.spa(), 4096, Prot::RW)
            .unwrap();
        setup
            .iommu
            .page_response(request.id, PageResponse::Success)
            .unwrap();
        assert_eq!(engine.join().unwrap(), PageResponse::Success);
        assert_eq!(contents(&setup.memory, 1), [1]);
    });
}

#[test]
fn a_detach_with_a_page_request_on_its_way_leaves_no_engine_waiting() {
    check(|| {
        let setup = setup();
        let queue = Arc::new(Queue::default());
        setup.domain.set_page_request_handler(Some(queue.clone()));
        DmaSource::new(&setup.device, None)
            .attach(&setup.domain, &sink())
            .unwrap();
        let engine = {
            let device = Arc::clone(&setup.device);
            thread::spawn(move || {
                // Before, during or after the detach: never stuck.
                let fault = *device
                    .port()
                    .enter(None)
                    .write(IOVA + 4096, &[1])
                    .fault()
                    .expect("never mapped");
                let answer = Arc::new(Answer::default());
                let given = Arc::clone(&answer);
                let asked = device.request_page(
                    &fault,
                    Box::new(move |response| {
                        *given.response.lock() = Some(response);
                        given.given.notify_one();
                    }),
                );
                if asked.is_ok() {
                    assert_eq!(answer.wait(), PageResponse::Invalid);
                }
            })
        };
        setup.route(false).detach();
        engine.join().unwrap();
        assert_eq!(setup.iommu.pending_page_requests(), 0);
        setup.domain.set_page_request_handler(None);
    });
}
